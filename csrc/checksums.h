// Checksums of many short texts, as zlib's crc32 gives them one by one.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace mmfast {

struct TextSum {
  int64_t count;
  uint64_t sum;  // of the checksums, each begun with the lower half of the text's id
};

// Adds up the checksums of ``texts``, which NUL separates, of ``ids``, decimal and separated by commas. None where the
// ids do not ascend from above ``after`` or are not one for each text.
std::optional<TextSum> sum_of_texts(std::string_view ids, std::string_view texts, int64_t after);

}  // namespace mmfast
