// Units with many active pairs: their sums of differences, from tables of sums of rows.
//
// Sums of rows chosen by bits, by the method of the four Russians (Arlazarov, Dinic, Kronrod, Faradzev, 1970): the sums
// of all 16 subsets of 4 rows are tabulated, and each mask adds one of them where it would have added up to 4 rows.
//
// Where the deviations of a tile's rows from one of them are small enough, they are summed as integers of 26 bits,
// exactly but for their own rounding, else in double, as twice as wide entries. A row that is not active enters no sum
// that is used, not even to be taken off again: next to a huge one the others would lose their digits.

// The 16 sums of an entry.
template <class T>
struct Entry {
  typedef decltype(load_vector((const T*)nullptr)) Vector;
  static constexpr int kCount = kSummedFeatures * sizeof(T) / kVectorBytes, kStep = kVectorBytes / sizeof(T);
  Vector part[kCount];
};
template <class T>
inline Entry<T> load_entry(const T* p) {
  Entry<T> e;
  for (int i = 0; i < e.kCount; ++i) e.part[i] = load_vector(p + i * e.kStep);
  return e;
}
template <class T>
inline void store_entry(T* p, Entry<T> e) {
  for (int i = 0; i < e.kCount; ++i) store(p + i * e.kStep, e.part[i]);
}
template <class T>
inline Entry<T> operator+(Entry<T> a, Entry<T> b) {
  for (int i = 0; i < a.kCount; ++i) a.part[i] += b.part[i];
  return a;
}
inline void add_entry(double* sums, Entry<double> e) { store_entry(sums, load_entry(sums) + e); }
inline void add_entry(double* sums, Entry<int32_t> e) {
  for (int i = 0; i < e.kCount; ++i, sums += 2 * kLanes) {
    store(sums, load<Doubles>(sums) + widen(low_half(e.part[i])));
    store(sums + kLanes, load<Doubles>(sums + kLanes) + widen(high_half(e.part[i])));
  }
}

// sums[r] = sum of the partners whose bits are set in the masks of row r. Integers are below 2^25.
template <class T>
MMFAST_ALONE void masked_sums(const uint64_t* masks, int count, const T* partners, int partner_count, double* sums) {
  constexpr int kWidth = kSummedFeatures;
  constexpr int kTabled = 256 / sizeof(T), kGroups = kTabled / 4;  // rows at a time: their tables, 16 KiB, stay in L1
  constexpr uint64_t kAll = ~uint64_t(0) >> (64 - kTabled);
  alignas(64) T table[kGroups * 16 * kWidth];
  double common[kWidth] = {};  // of what all rows have in common
  for (int i = 0; i < count * kWidth; ++i) sums[i] = 0;
  for (int c = 0; c < partner_count; c += kTabled) {
    const uint64_t* const words = masks + c / kPanel * kBlock;
    const int shift = c % kPanel;
    uint64_t any = 0, every = ~uint64_t(0);
    for (int r = 0; r < count; ++r) any |= words[r], every &= words[r];
    if (!(any >> shift & kAll)) continue;
    Entry<T> all = {};
    for (int g = 0; g < kGroups; ++g) {
      T* const subsets = table + g * 16 * kWidth;
      store_entry(subsets, Entry<T>{});
      for (int member = 0; member < 4; ++member) {
        const int row = c + 4 * g + member;
        const Entry<T> partner = row < partner_count ? load_entry(partners + row * kWidth) : Entry<T>{};
        for (int subset = 0; subset < 1 << member; ++subset)
          store_entry(subsets + ((1 << member) + subset) * kWidth, load_entry(subsets + subset * kWidth) + partner);
      }
      all = all + load_entry(subsets + 15 * kWidth);
    }
    if ((every >> shift & kAll) == kAll) {
      add_entry(common, all);
      continue;
    }
    for (int r = 0; r < count; ++r) {
      const uint64_t bits = words[r] >> shift & kAll;
      if (!bits) continue;
      Entry<T> sum = all;
      if (bits != kAll) {
        sum = load_entry(table + (bits & 15) * kWidth);
        for (int g = 1; g < kGroups; ++g) sum = sum + load_entry(table + (g * 16 + (bits >> 4 * g & 15)) * kWidth);
      }
      add_entry(sums + r * kWidth, sum);
    }
  }
  for (int r = 0; r < count; ++r) add_entry(sums + r * kWidth, load_entry(common));
}

// Bit c of word r becomes bit r of word c (Warren, Hacker's Delight, 7-3).
inline void transpose_bits(uint64_t* words) {
  uint64_t low = 0x00000000ffffffff;
  for (int j = 32; j; j /= 2, low ^= low << j)
    for (int k = 0; k < kPanel; k = (k + j + 1) & ~j) {
      const uint64_t swapped = (words[k] >> j ^ words[k + j]) & low;
      words[k] ^= swapped << j;
      words[k + j] ^= swapped;
    }
}

// sums[r] += sum of the partners in a row's list. Integers are below 2^25.
template <class T>
MMFAST_ALONE void listed_sums(const uint16_t* lists, const double* weight, int count, const T* partners, double* sums) {
  for (int r = 0; r < count; ++r) {
    const uint16_t* const list = lists + r * kLongestList;
    if (weight[r] == 0 || weight[r] > kLongestList) continue;
    const int length = int(weight[r]);
    Entry<T> even = load_entry(partners + list[0] * kSummedFeatures), odd = {};
    int i = 1;
    for (; i + 2 <= length; i += 2) {
      odd = odd + load_entry(partners + list[i] * kSummedFeatures);
      even = even + load_entry(partners + list[i + 1] * kSummedFeatures);
    }
    if (i < length) odd = odd + load_entry(partners + list[i] * kSummedFeatures);
    add_entry(sums + r * kSummedFeatures, even + odd);
  }
}

// One side of a dense tile.
struct DenseSide {
  const float* const* rows;
  double* const* targets;  // null: not wanted
  int count;
  uint64_t masks[kMaskWords];  // over the other side, of the rows with many bits
  uint16_t* lists;             // (kBlock, kLongestList) the bits of the others
  double* wide;                // (kBlock, kSummedFeatures) the features at hand of its rows
  int32_t* integers;           // the same as multiples of a step from the origin
  double* sums;                // of its partners
  double weight[kBlock];       // the number of bits
  double norms[kBlock * 8];    // |row - origin|^2 in 8 parts

  DenseSide(const float* const* rows, double* const* targets, int count, const uint64_t* active, int panels,
            double*& scratch)
      : rows(rows), targets(targets), count(count), wide(scratch), sums(scratch + kSide) {
    integers = (int32_t*)(scratch + 2 * kSide);
    lists = (uint16_t*)(integers + kSide);
    scratch += 3 * kSide + kBlock * kLongestList / 4;
    for (int r = 0; r < count; ++r) {
      int bits = 0;
      for (int p = 0; p < panels; ++p) bits += __builtin_popcountll(active[p * kBlock + r]);
      weight[r] = bits;
      store_lanes(norms + r * 8, D8{});
      uint16_t* next = lists + r * kLongestList;
      for (int p = 0; p < panels; ++p) {
        uint64_t word = active[p * kBlock + r];
        masks[p * kBlock + r] = bits > kLongestList ? word : 0;
        for (; bits <= kLongestList && word; word &= word - 1) *next++ = uint16_t(p * kPanel + __builtin_ctzll(word));
      }
    }
  }

  template <class T>
  void sum(const T* partners, int partner_count) {
    masked_sums(masks, count, partners, partner_count, sums);
    listed_sums(lists, weight, count, partners, sums);
  }
  static constexpr int kSide = kBlock * kSummedFeatures;

  // Widens the features from `begin` on; pads with zeros.
  MMFAST_ALONE void widen(int begin, int width) {
    double* to = wide;
    for (int r = 0; r < count; ++r, to += kSummedFeatures) {
      const float* const row = rows[r] + begin;
      if (r + kAhead < count) __builtin_prefetch(rows[r + kAhead] + begin);
      if (weight[r] == 0) continue;
      int k = 0;
      for (; k + 8 <= width; k += 8) store_lanes(to + k, load_double(row + k));
      for (; k < kSummedFeatures; ++k) to[k] = k < width ? double(row[k]) : 0;
    }
  }

  // The largest deviation from the origin among the rows that are summed, if it is more than `known`.
  double largest_deviation(const double* origin, double known) const {
    const D8 low = load_double(origin), high = load_double(origin + 8);
    D8 largest = {};
    for (int r = 0; r < count; ++r) {
      if (weight[r] == 0) continue;
      largest = larger_magnitude(largest, load_double(wide + r * kSummedFeatures) - low);
      largest = larger_magnitude(largest, load_double(wide + r * kSummedFeatures + 8) - high);
    }
    double lanes[8];
    store_lanes(lanes, largest);
    for (double lane : lanes) known = lane > known ? lane : known;
    return known;
  }

  MMFAST_ALONE void make_integers(const double* origin, double steps_per_unit, int begin) {
    for (int r = 0; r < count; ++r) {
      if (weight[r] == 0) {
        for (int k = 0; k < kSummedFeatures; k += 2 * kLanes) store(integers + r * kSummedFeatures + k, Ints{});
        continue;
      }
      if (targets) {
        __builtin_prefetch(targets[r] + begin, 1, 2);
        __builtin_prefetch(targets[r] + begin + 8, 1, 2);
      }
      for (int k = 0; k < kSummedFeatures; k += 8) {
        const D8 z = nearest((load_double(wide + r * kSummedFeatures + k) - load_double(origin + k)) * steps_per_unit);
        int32_t* const to = integers + r * kSummedFeatures + k;
        for (int i = 0; i < kParts; ++i) store(to + i * kLanes, __builtin_convertvector(z.part[i], HalfInts));
      }
    }
  }

  // Turns the partners' sums, in multiples of `step` from `base`, into sums of differences, adds them to where they
  // belong, and returns this side's part of sum_ij A_ij |x_i - x_j|^2. With integers, kSecond corrects it (below).
  enum Part { kExact, kFirst, kSecond };
  MMFAST_ALONE double collect(const double* origin, const double* base, double step, Part part, int begin, int width) {
    D8 dot = {};
    for (int r = 0; r < count; ++r) {
      if (weight[r] == 0) continue;
      D8 norm = load_double(norms + r * 8);
      double differences[kSummedFeatures];
      for (int k = 0; k < kSummedFeatures; k += 8) {
        const int at = r * kSummedFeatures + k;
        const D8 row = load_double(wide + at), deviation = row - load_double(origin + k);
        const D8 sum = load_double(sums + at) * step;
        const D8 difference =
            (row - load_double(base + k)) * weight[r] - sum;  // an exact product where the base is zero
        dot = dot + deviation * difference;
        if (part == kFirst) dot = dot - deviation * sum;
        if (part == kSecond) dot = dot + (load_double(integers + at) * (2 * step) - deviation) * sum;
        norm = norm + deviation * deviation;
        store_lanes(differences + k, difference);
      }
      store_lanes(norms + r * 8, norm);
      if (!targets) continue;
      double* const target = targets[r] + begin;
      if (r + kAhead < count) {
        __builtin_prefetch(targets[r + kAhead] + begin, 1);
        __builtin_prefetch(targets[r + kAhead] + begin + 8, 1);
      }
      int k = 0;
      for (; k + 8 <= width; k += 8) store_lanes(target + k, load_double(target + k) + load_double(differences + k));
      for (; k < width; ++k) target[k] += differences[k];
    }
    return total(dot);
  }

  // The largest |row - origin|^2 of a row that was summed.
  double spread() const {
    double largest = 0;
    for (int r = 0; r < count; ++r) {
      const double norm = total(load_double(norms + r * 8));
      largest = norm > largest ? norm : largest;
    }
    return largest;
  }
};

// With S_i = sum_j A_ij (x_i - x_j) and S_j = sum_i A_ij (x_j - x_i), sum_ij A_ij |x_i - x_j|^2 is the sum of x_i . S_i
// and x_j . S_j from any origin.
//
// An integer is off by half a step, a sum of k of them by k step / 2 at most and by sqrt(k) step / 4 as a rule. A step
// is the largest deviation / 2^25, and that is at most kLargestDeviation times sqrt(m / D), which is what a feature of
// an active pair's difference measures as a rule: the sum's error is a rounding of float32, 2^-24, of its gradient. The
// loss is far better: let x_i + e_i be what an integer stands for, U_i = sum_j A_ij (x_j + e_j) the sums at hand and
// U_j those of the other side. As sum x_i U_i + sum x_j U_j - sum (x_i + e_i) U_i = sum_ij A_ij (x_i x_j - e_i e_j),
// twice the left side in the place of sum x_i U_i + sum x_j U_j leaves but products of two errors in it.
constexpr double kLargestDeviation = 8, kLargestInteger = (1 << 25) - 2;

inline DenseResult accumulate(const DenseTile& tile) {
  const int panels = (tile.other_count + kPanel - 1) / kPanel,
            turned_panels = (tile.anchor_count + kPanel - 1) / kPanel;
  uint64_t turned[kMaskWords];
  for (int a = 0; a < turned_panels; ++a)
    for (int p = 0; p < panels; ++p) {
      uint64_t* const unit = turned + a * kBlock + p * kPanel;
      for (int r = 0; r < kPanel; ++r) {
        const int row = a * kPanel + r;
        unit[r] = row < tile.anchor_count ? tile.active[p * kBlock + row] : 0;
      }
      transpose_bits(unit);
    }
  double* scratch = tile.scratch;
  DenseSide anchors(tile.anchors, tile.anchor_sums, tile.anchor_count, tile.active, panels, scratch);
  DenseSide others(tile.others, tile.other_sums, tile.other_count, turned, turned_panels, scratch);

  const double zero[kSummedFeatures] = {};
  const double limit = kLargestDeviation * __builtin_sqrt(tile.margin / tile.features);
  int first = 0;  // of the rows that are summed
  while (first < anchors.count - 1 && anchors.weight[first] == 0) ++first;
  double squares = 0;
  for (int begin = 0; begin < tile.features; begin += kSummedFeatures) {
    const int left = tile.features - begin, width = left < kSummedFeatures ? left : kSummedFeatures;
    anchors.widen(begin, width);
    others.widen(begin, width);
    const double *const origin = anchors.wide + first * kSummedFeatures, *base = zero;
    const double largest = others.largest_deviation(origin, anchors.largest_deviation(origin, 0x1p-149));
    const bool integers = largest <= limit;
    double step = 1;
    if (integers) {
      step = largest / kLargestInteger;
      base = origin;
      anchors.make_integers(origin, 1 / step, begin);
      others.make_integers(origin, 1 / step, begin);
      anchors.sum(others.integers, others.count);
      others.sum(anchors.integers, anchors.count);
    } else {
      anchors.sum(others.wide, others.count);
      others.sum(anchors.wide, anchors.count);
    }
    squares += anchors.collect(origin, base, step, integers ? DenseSide::kSecond : DenseSide::kExact, begin, width);
    squares += others.collect(origin, base, step, integers ? DenseSide::kFirst : DenseSide::kExact, begin, width);
  }
  const double a = anchors.spread(), o = others.spread();
  return {squares, a > o ? a : o};
}
