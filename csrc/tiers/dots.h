// One query against rows in their own order: integer dot products, and the screen of exact search made of them. A tier
// brings query_products.

// out[i] = the dot product of the query and row i, or row ids[i].
void dots(const Dots& d) {
  int i = 0;
  for (; i + 4 <= d.count; i += 4) {
    const int8_t* rows[4];
    for (int r = 0; r < 4; ++r) rows[r] = d.rows + size_t(d.ids ? d.ids[i + r] : i + r) * d.depth;
    query_products<4>(rows, d.query, d.query_sum, d.depth, d.out + i);
  }
  for (; i < d.count; ++i) {
    const int8_t* const rows[1] = {d.rows + size_t(d.ids ? d.ids[i] : i) * d.depth};
    query_products<1>(rows, d.query, d.query_sum, d.depth, d.out + i);
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

// Clears the bits of rows that certainly score below the threshold (exact_search.h).
void scan(const Scan& s) {
  constexpr int kStep = 2 * kLanes;
  for (int begin = 0; begin < s.count; begin += kPanel) {
    const int count = s.count - begin < kPanel ? s.count - begin : kPanel;
    int32_t products[kPanel] = {};
    dots({s.rows + size_t(begin) * s.depth, nullptr, count, s.depth, s.query, s.query_sum, products});
    uint64_t below = 0;
    for (int c = 0; c < kPanel; c += kStep) {
      const int i = begin + c;
      const Floats left = load<Floats>(s.half + i) * s.half_weight + s.threshold -
                          load<Floats>(s.norm + i) * s.norm_weight - load<Floats>(s.residual + i) * s.residual_weight;
      const Floats right = __builtin_convertvector(load<Ints>(products + c), Floats) * load<Floats>(s.scale + i);
      below |= uint64_t(lane_bits(left >= right)) << c;
    }
    const uint64_t valid = count == kPanel ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
    s.masks[begin / kPanel] = ~below & valid;
  }
}
