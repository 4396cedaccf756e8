// The graph inside a file of USearch 2.x.
//
// Little-endian, as its save() writes it: a matrix (u32 rows, u32 bytes per row, the rows), a head of 64 bytes that
// begins with "usearch" and the version, five u64 (size, connectivity, base connectivity, top level, entry), an int16
// level per slot, and for each slot a node: u64 key, i16 level, u32 count and room for the links of the lowest level,
// and the same for each level above.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mmfast {

struct UsearchGraph {
  int64_t nodes = 0;
  int slots = 0;                    // base connectivity
  std::vector<int64_t> keys;        // (nodes,)
  std::vector<int16_t> levels;      // (nodes,)
  std::vector<int32_t> neighbours;  // (nodes, slots), in front those there are, then -1
  int upper_slots = 0;              // connectivity
  std::vector<int32_t> upper;       // (nodes of level 1 and more, in order, upper_slots): their links on level 1
};

// Throws std::invalid_argument where the bytes are not as described.
UsearchGraph read_usearch_graph(const uint8_t* bytes, size_t size);

}  // namespace mmfast
