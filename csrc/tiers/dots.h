// One query against rows in their own order: integer dot products, and the screen of exact search made of them. A tier
// brings half_products, of a plane's 4-bit numbers.

inline const uint8_t* plane_row(const uint8_t* plane, const Dots& d, int i) {
  return plane + size_t(d.ids ? d.ids[i] : i) * d.rows.width;
}

// out[i] = the dot product of the query and row i, or row ids[i].
template <int ROWS>
inline void dot_rows(const Dots& d, int i) {
  const uint8_t* rows[ROWS];
  int32_t* const out = d.out + i;
  for (int r = 0; r < ROWS; ++r) rows[r] = plane_row(d.rows.coarse, d, i + r);
  half_products<ROWS>(rows, d.query, d.rows.width, out);
  if (!d.rows.fine) {
    for (int r = 0; r < ROWS; ++r) out[r] = 16 * out[r] - 120 * d.query_sum;
    return;
  }
  int32_t fine[ROWS];
  for (int r = 0; r < ROWS; ++r) rows[r] = plane_row(d.rows.fine, d, i + r);
  half_products<ROWS>(rows, d.query, d.rows.width, fine);
  for (int r = 0; r < ROWS; ++r) out[r] = 16 * out[r] + fine[r] - 128 * d.query_sum;
}

void dots(const Dots& d) {
  int i = 0;
  for (; i + 4 <= d.count; i += 4) dot_rows<4>(d, i);
  for (; i < d.count; ++i) dot_rows<1>(d, i);
}

// Rows of digits, with the tier's offset, from their planes.
void unpack(const Planes& rows, int count, uint8_t* out) {
  const Ints low = int32_t(0x0f0f0f0f) - Ints{}, flip = int32_t(kOffset ? 0 : 0x80808080) - Ints{};  // takes 128 off
  for (int i = 0; i < count; ++i, out += 2 * rows.width) {
    const uint8_t *coarse = rows.coarse + size_t(i) * rows.width, *fine = rows.fine + size_t(i) * rows.width;
    for (int k = 0; k < rows.width; k += kVectorBytes) {
      const Ints digits = ((load<Ints>(coarse + k) & low) << 4 | (load<Ints>(fine + k) & low)) ^ flip;
      __builtin_memcpy(out + k, &digits, sizeof digits);
    }
    for (int k = 0; k < rows.width; k += kVectorBytes) {
      const Ints digits = ((load<Ints>(coarse + k) & ~low) | (load<Ints>(fine + k) >> 4 & low)) ^ flip;
      __builtin_memcpy(out + rows.width + k, &digits, sizeof digits);
    }
  }
}

// By integers and one exact product.
inline float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
void widen_bf16(const uint16_t* from, int count, float* to) {
  for (int k = 0; k < count; ++k) to[k] = from_bits(uint32_t(from[k]) << 16);
}
void widen_f16(const uint16_t* from, int count, float* to) {
  for (int k = 0; k < count; ++k) {
    const float magnitude = from_bits(uint32_t(from[k] & 0x7fff) << 13) * 0x1p112f;
    const uint32_t unusual = (from[k] & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;  // infinity and NaN
    to[k] = from_bits(to_bits(magnitude) | unusual | uint32_t(from[k] & 0x8000) << 16);
  }
}

// Which of 64 rows from `first` on certainly score below the threshold.
inline uint64_t certainly_below(const Scan& s, int first, const int32_t* products, const float* residual,
                                float residual_weight) {
  constexpr int kStep = 2 * kLanes;
  uint64_t below = 0;
  for (int c = 0; c < kPanel; c += kStep) {
    const int i = first + c;
    const Floats left = load<Floats>(s.half + i) * s.half_weight + s.threshold -
                        load<Floats>(s.norm + i) * s.norm_weight - load<Floats>(residual + i) * residual_weight;
    const Floats right = __builtin_convertvector(load<Ints>(products + c), Floats) * load<Floats>(s.scale + i);
    below |= uint64_t(at_least(left, right)) << c;
  }
  return below;
}

// Clears the bits of rows that certainly score below the threshold: of most by their coarse digits, of some that are
// left by all digits.
void scan(const Scan& s) {
  for (int begin = 0; begin < s.count; begin += kPanel) {
    const int count = s.count - begin < kPanel ? s.count - begin : kPanel;
    const size_t at = size_t(begin) * s.rows.width;
    int32_t* const products = s.products + begin;
    for (int i = count; i < kPanel; ++i) products[i] = 0;
    dots({{s.rows.coarse + at, nullptr, s.rows.width}, nullptr, count, s.query, s.query_sum, products});
    const uint64_t valid = count == kPanel ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
    uint64_t left = ~certainly_below(s, begin, products, s.coarse_residual, s.coarse_weight) & valid;
    if (left) {
      int32_t ids[kPanel], exact[kPanel];
      int found = 0;
      for (uint64_t word = left; word; word &= word - 1) ids[found++] = __builtin_ctzll(word);
      dots({{s.rows.coarse + at, s.rows.fine + at, s.rows.width}, ids, found, s.query, s.query_sum, exact});
      for (int i = 0; i < found; ++i) products[ids[i]] = exact[i];
      left &= ~certainly_below(s, begin, products, s.residual, s.residual_weight);
    }
    s.masks[begin / kPanel] = left;
  }
}
