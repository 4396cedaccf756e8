// Rows against one panel of columns: what every tier does with the dot products that its add_products computes, of up
// to kScreenedRows rows with kHeld registers of columns at a time.

template <int ROWS>
inline void screen_rows(const Screening& s, int first) {
  constexpr int kStep = 2 * kLanes;
  const RowBound* const bounds = s.bounds + first;
  uint64_t inactive[ROWS] = {}, active[ROWS] = {};
  for (int c = 0; c < kPanel; c += kHeld * kStep) {
    Ints acc[ROWS][kHeld];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int h = 0; h < kHeld; ++h) acc[r][h] = bounds[r].start - Ints{};
    add_products<ROWS>(s.rows + size_t(first) * s.depth, s.panel + 4 * c, s.depth, acc);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int h = 0; h < kHeld; ++h) {
        const int column = c + h * kStep;
        decide(acc[r][h], bounds[r], s.inverse + column, s.weighted + column, s.active_weighted + column, column,
               &inactive[r], s.active ? &active[r] : nullptr);
      }
  }
  for (int r = 0; r < ROWS; ++r) {
    s.masks[first + r] = ~inactive[r];
    if (s.active) s.active[first + r] = active[r];
  }
}

void screen(const Screening& s) {
  int r = 0;
  for (; r + kScreenedRows <= s.row_count; r += kScreenedRows) screen_rows<kScreenedRows>(s, r);
  for (; r + 2 <= s.row_count; r += 2) screen_rows<2>(s, r);
  for (; r < s.row_count; ++r) screen_rows<1>(s, r);
}
