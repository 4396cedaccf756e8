// Rows against one panel of columns: what every tier does with the dot products that its add_products computes, of up
// to kScreenedRows rows with kHeld registers of columns at a time.

// The columns from `first` on, as far as HELD registers at a time are needed, then those left by fewer.
template <int ROWS, int HELD>
inline void screen_columns(const Screening& s, int row, int first, uint64_t (&inactive)[ROWS],
                           uint64_t (&active)[ROWS]) {
  constexpr int kStep = 2 * kLanes, kMore = HELD > 1 ? HELD / 2 * kStep : 0;
  constexpr uint64_t kAllBits = ~uint64_t(0) >> (kPanel - HELD * kStep);
  const RowBound* const bounds = s.bounds + row;
  int c = first;
  for (; c + kMore < s.columns; c += HELD * kStep) {
    Ints acc[ROWS][HELD];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int h = 0; h < HELD; ++h) acc[r][h] = load<Ints>(s.start + c + h * kStep);
    add_products(s.rows + size_t(row) * s.depth, s.panel + 4 * c, s.depth, acc);
    const float *const inverse = s.inverse + c, *const weighted = s.weighted + c;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      uint64_t bits = 0;
#pragma GCC unroll 4
      for (int h = 0; h < HELD; ++h)
        bits |= inactive_bits(acc[r][h], bounds[r], inverse + h * kStep, weighted + h * kStep) << h * kStep;
      inactive[r] |= bits << c;
      if (s.products && bits != kAllBits)
#pragma GCC unroll 4
        for (int h = 0; h < HELD; ++h) store(s.products + size_t(row + r) * kPanel + c + h * kStep, acc[r][h]);
    }
    if (!s.active) continue;
    const float* const active_weighted = s.active_weighted + c;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      uint64_t bits = 0;
#pragma GCC unroll 4
      for (int h = 0; h < HELD; ++h)
        bits |= active_bits(acc[r][h], bounds[r], inverse + h * kStep, active_weighted + h * kStep) << h * kStep;
      active[r] |= bits << c;
    }
  }
  if constexpr (HELD > 1) screen_columns<ROWS, HELD / 2>(s, row, c, inactive, active);
}

template <int ROWS>
inline void screen_rows(const Screening& s, int row) {
  const uint64_t outside = s.columns < kPanel ? ~uint64_t(0) << s.columns : 0;
  uint64_t inactive[ROWS], active[ROWS] = {};
  for (int r = 0; r < ROWS; ++r) inactive[r] = outside;
  screen_columns<ROWS, kHeld>(s, row, 0, inactive, active);
  for (int r = 0; r < ROWS; ++r) {
    s.masks[row + r] = ~inactive[r];
    if (s.active) s.active[row + r] = active[r];
  }
}

void screen(const Screening& s) {
  int r = 0;
  for (; r + kScreenedRows <= s.row_count; r += kScreenedRows) screen_rows<kScreenedRows>(s, r);
  for (; r + 2 <= s.row_count; r += 2) screen_rows<2>(s, r);
  for (; r < s.row_count; ++r) screen_rows<1>(s, r);
}
