// Approximate nearest neighbours by walking a graph of neighbours: products of few bits lead, float64 decides.
//
// The walk keeps the `expansion` nearest rows it has met, by the score of their digits (vectors.h), and goes on from
// the nearest one it has not been at, until it has been at all of them. All links of one row are measured together,
// their digits fetched ahead. Of what is left at the end, the rows that may be among the nearest, given what the bits
// leave open, are ranked by distances in float64 (shortlist.h); that few bits order close rows wrongly costs little
// recall.
//
// The graph is the lowest layer of a hierarchical one. The rows of the layer above come first, and have its links too:
// long ones, by which a walk leaves one cluster for another. In place of the layers above that, it begins at the
// nearest of the very first rows.
#pragma once

#include <cstdint>
#include <vector>

#include "exact_search.h"

namespace mmfast {

struct Links {
  const int32_t* neighbours;  // (nodes, slots), in front those there are, then -1
  const int32_t* copies;      // (rows,) the next row with the same vector, or -1; rows from `nodes` on are such copies
  const int32_t* upper;       // (upper_nodes, upper_slots), likewise, of the first rows
  int64_t nodes, upper_nodes;
  int slots, upper_slots;
  int entries;   // the first rows, where walks begin; at least 1
  bool decided;  // whether the digits of all rows tell something
};

// What a walk goes by: the upper 4 bits of digits, which is half of the memory traffic; all 8; or the rows as they were
// given, in float64, where digits around one centre cannot tell close rows apart. Which leads as well as the next
// depends on the data.
enum class Precision { kFour = 4, kEight = 8, kRows = 64 };

// As exact_search, for search.k and any radius; a query of which fewer than k rows were found gets those. `expansion`
// is at least 1.
std::vector<std::vector<Neighbour>> graph_search(const ExactSearch& search, const Links& links, int expansion,
                                                 Precision precision);

}  // namespace mmfast
