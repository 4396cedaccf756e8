#include "usearch_file.h"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace mmfast {
namespace {

constexpr size_t kHead = 64;
constexpr int kMajorVersion = 2;

// Reads numbers one after the other, and never beyond the end.
class Reader {
 public:
  Reader(const uint8_t* bytes, size_t size) : bytes_(bytes), size_(size) {}
  template <class T>
  T read() {
    T value;
    std::memcpy(&value, skip(sizeof value), sizeof value);
    return value;
  }
  // A number, and room for as many links as there are slots.
  void read_links(uint64_t slots, uint64_t nodes, int32_t* out) {
    const uint32_t count = read<uint32_t>();
    const uint8_t* const links = skip(slots * sizeof(uint32_t));
    if (count > slots) throw std::invalid_argument("the graph's links are damaged");
    for (uint32_t n = 0; n < count; ++n) {
      uint32_t link;
      std::memcpy(&link, links + n * sizeof link, sizeof link);
      if (link >= nodes) throw std::invalid_argument("the graph's links are damaged");
      out[n] = int32_t(link);
    }
  }
  size_t left() const { return size_ - at_; }
  const uint8_t* skip(size_t count) {
    if (count > left()) throw std::invalid_argument("the graph is truncated");
    at_ += count;
    return bytes_ + (at_ - count);
  }

 private:
  const uint8_t* bytes_;
  size_t size_, at_ = 0;
};

}  // namespace

UsearchGraph read_usearch_graph(const uint8_t* bytes, size_t size) {
  Reader reader(bytes, size);
  const uint64_t rows = reader.read<uint32_t>(), row_bytes = reader.read<uint32_t>();
  reader.skip(rows * row_bytes);
  const uint8_t* const head = reader.skip(kHead);
  if (std::memcmp(head, "usearch", 7) != 0) throw std::invalid_argument("no USearch graph: its head is missing");
  uint16_t version;
  std::memcpy(&version, head + 7, sizeof version);
  if (version != kMajorVersion)
    throw std::invalid_argument("the graph has USearch's version " + std::to_string(version) + ", not 2");
  const uint64_t nodes = reader.read<uint64_t>(), connectivity = reader.read<uint64_t>();
  const uint64_t slots = reader.read<uint64_t>();
  reader.read<uint64_t>();  // the top level
  reader.read<uint64_t>();  // its entry
  if (nodes != rows || nodes > uint64_t(std::numeric_limits<int32_t>::max()) || connectivity > 4096 || slots > 8192 ||
      slots < 1)
    throw std::invalid_argument("the graph's head is damaged");
  const uint64_t node_bytes = 2 * sizeof(int16_t) + sizeof(uint64_t) + (1 + slots) * sizeof(uint32_t);
  if (nodes * node_bytes > reader.left()) throw std::invalid_argument("the graph is truncated");

  UsearchGraph graph;
  graph.nodes = int64_t(nodes);
  graph.slots = int(slots);
  graph.upper_slots = int(connectivity);
  graph.levels.resize(nodes);
  if (nodes) std::memcpy(graph.levels.data(), reader.skip(nodes * sizeof(int16_t)), nodes * sizeof(int16_t));
  graph.keys.resize(nodes);
  graph.neighbours.assign(nodes * slots, -1);
  for (uint64_t i = 0; i < nodes; ++i) {
    graph.keys[i] = int64_t(reader.read<uint64_t>());
    const int16_t level = reader.read<int16_t>();
    if (level < 0 || level != graph.levels[i]) throw std::invalid_argument("the graph's levels are damaged");
    reader.read_links(slots, nodes, graph.neighbours.data() + i * slots);
    if (!level) continue;
    graph.upper.resize(graph.upper.size() + connectivity, -1);
    reader.read_links(connectivity, nodes, graph.upper.data() + (graph.upper.size() - connectivity));
    reader.skip(size_t(level - 1) * (1 + connectivity) * sizeof(uint32_t));
  }
  return graph;
}

}  // namespace mmfast
