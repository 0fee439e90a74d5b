// Checkpoints in memory: a ByteSource over a string, a zip writer that can be
// told to lie, and pickles put together from expressions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/byte_source.h"
#include "base/error.h"

namespace ckpt_streamer::testing {

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::string bytes, std::string path = "m.pt")
      : path_(std::move(path)), bytes_(std::move(bytes)) {}

  [[nodiscard]] const std::string& path() const noexcept override {
    return path_;
  }
  [[nodiscard]] uint64_t size_bytes() const noexcept override {
    return bytes_.size();
  }
  void read(uint64_t file_offset, std::span<std::byte> out) const override {
    const auto bytes = bytes_in(file_offset, out.size());
    std::copy(bytes.begin(), bytes.end(), out.begin());
  }
  [[nodiscard]] ByteView view(const ByteRange& range) const override {
    return {bytes_in(range.begin, range.size_bytes()), nullptr};
  }

 private:
  [[nodiscard]] std::span<const std::byte> bytes_in(
      uint64_t file_offset,
      uint64_t byte_count) const {
    if (file_offset > bytes_.size() ||
        byte_count > bytes_.size() - file_offset) {
      throw CheckpointError(
          ErrorKind::kCorrupt,
          path_,
          "read outside the source",
          file_offset);
    }
    return std::as_bytes(std::span(bytes_)).subspan(file_offset, byte_count);
  }

  std::string path_;
  std::string bytes_;
};

inline std::string little_endian(uint64_t value, size_t byte_count) {
  std::string bytes;
  for (size_t i = 0; i < byte_count; ++i) {
    bytes += static_cast<char>(value >> (8 * i) & 0xFF);
  }
  return bytes;
}

// What is not set is what a correct writer writes.
struct ZipRecord {
  std::string name;
  std::string data;
  uint16_t method = 0;
  uint16_t flags = 0;
  std::string local_extra = {};
  bool is_zip64 = false;
  std::string local_name = {};
  std::optional<uint32_t> central_size = {};
  std::optional<uint32_t> compressed_size = {};
  std::optional<uint32_t> local_offset = {};
  uint32_t crc = 0;
};

struct ZipOptions {
  std::string comment = {};
  bool is_zip64 = false;
  std::optional<uint64_t> entry_count = {};
  std::optional<uint32_t> directory_size = {};
  std::string directory_suffix = {};
  std::string file_suffix = {};
};

inline std::string build_zip(
    const std::vector<ZipRecord>& records,
    const ZipOptions& options = {}) {
  constexpr uint64_t kAllOnes = 0xFFFFFFFF;
  std::string file;
  std::string directory;
  for (const ZipRecord& record : records) {
    const uint64_t offset =
        record.local_offset.value_or(static_cast<uint32_t>(file.size()));
    const std::string& local_name =
        record.local_name.empty() ? record.name : record.local_name;
    file += "PK\x03\x04" + little_endian(20, 2) +
            little_endian(record.flags, 2) + little_endian(record.method, 2) +
            little_endian(0, 4 + 4) + little_endian(record.data.size(), 4) +
            little_endian(record.data.size(), 4) +
            little_endian(local_name.size(), 2) +
            little_endian(record.local_extra.size(), 2) + local_name +
            record.local_extra + record.data;
    const uint64_t size =
        record.central_size.value_or(static_cast<uint32_t>(record.data.size()));
    const uint64_t compressed_size =
        record.compressed_size.value_or(static_cast<uint32_t>(size));
    const std::string extra = !record.is_zip64
                                  ? ""
                                  : little_endian(1, 2) + little_endian(24, 2) +
                                        little_endian(size, 8) +
                                        little_endian(compressed_size, 8) +
                                        little_endian(offset, 8);
    const bool wide = record.is_zip64;
    directory +=
        "PK\x01\x02" + little_endian(20, 2) + little_endian(20, 2) +
        little_endian(record.flags, 2) + little_endian(record.method, 2) +
        little_endian(0, 4) + little_endian(record.crc, 4) +
        little_endian(wide ? kAllOnes : compressed_size, 4) +
        little_endian(wide ? kAllOnes : size, 4) +
        little_endian(record.name.size(), 2) + little_endian(extra.size(), 2) +
        little_endian(0, 8) + little_endian(0, 2) +
        little_endian(wide ? kAllOnes : offset, 4) + record.name + extra;
  }
  directory += options.directory_suffix;
  const uint64_t directory_offset = file.size();
  const uint64_t directory_size =
      options.directory_size.value_or(static_cast<uint32_t>(directory.size()));
  const uint64_t count = options.entry_count.value_or(records.size());
  file += directory;
  if (options.is_zip64) {
    const uint64_t record_offset = file.size();
    file += "PK\x06\x06" + little_endian(44, 8) + little_endian(45, 2) +
            little_endian(45, 2) + little_endian(0, 8) +
            little_endian(count, 8) + little_endian(count, 8) +
            little_endian(directory_size, 8) +
            little_endian(directory_offset, 8);
    file += "PK\x06\x07" + little_endian(0, 4) +
            little_endian(record_offset, 8) + little_endian(1, 4);
  }
  const bool wide = options.is_zip64;
  file += "PK\x05\x06" + little_endian(0, 4) +
          little_endian(wide ? 0xFFFF : count, 2) +
          little_endian(wide ? 0xFFFF : count, 2) +
          little_endian(wide ? kAllOnes : directory_size, 4) +
          little_endian(wide ? kAllOnes : directory_offset, 4) +
          little_endian(options.comment.size(), 2) + options.comment;
  return file + options.file_suffix;
}

// Expressions: each is the opcodes that push one value.
namespace pickle {

inline std::string text(std::string_view value) {
  return "X" + little_endian(value.size(), 4) + std::string(value);
}
inline std::string integer(int32_t value) {
  return "J" + little_endian(static_cast<uint32_t>(value), 4);
}
inline std::string boolean(bool value) {
  return value ? "\x88" : "\x89";
}
inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string sequence(
    const std::string& begin,
    const std::vector<std::string>& values,
    const std::string& end) {
  std::string result = begin;
  for (const std::string& value : values) {
    result += value;
  }
  return result + end;
}
inline std::string tuple(const std::vector<std::string>& values) {
  return sequence("(", values, "t");
}
inline std::string list(const std::vector<std::string>& values) {
  return sequence("](", values, "e");
}
using Entries = std::vector<std::pair<std::string, std::string>>;
inline std::string with_entries(
    const std::string& container,
    const Entries& entries) {
  std::string result = container + "(";
  for (const auto& [key, value] : entries) {
    result += key;
    result += value;
  }
  return result + "u";
}
inline std::string dict(const Entries& entries) {
  return with_entries("}", entries);
}
inline std::string reduce(
    const std::string& callable,
    const std::vector<std::string>& args) {
  return callable + tuple(args) + "R";
}
inline std::string ordered_dict(const Entries& entries) {
  return with_entries(
      reduce(global("collections", "OrderedDict"), {}),
      entries);
}
inline std::string put(const std::string& value, unsigned key) {
  return value + "q" + little_endian(key, 1);
}
inline std::string get(unsigned key) {
  return "h" + little_endian(key, 1);
}
inline std::string integers(std::initializer_list<int32_t> values) {
  std::vector<std::string> parts;
  for (const int32_t value : values) {
    parts.push_back(integer(value));
  }
  return tuple(parts);
}
inline std::string storage(
    const std::string& type,
    const std::string& key,
    int32_t count) {
  return tuple(
             {text("storage"),
              global("torch", type),
              text(key),
              text("cpu"),
              integer(count)}) +
         "Q";
}
// _rebuild_tensor_v2 with what is usual after the strides.
inline std::string tensor(
    const std::string& storage_value,
    int32_t offset,
    const std::string& sizes,
    const std::string& strides) {
  return reduce(
      global("torch._utils", "_rebuild_tensor_v2"),
      {storage_value,
       integer(offset),
       sizes,
       strides,
       boolean(false),
       ordered_dict({})});
}
// All of the float storage `key`, contiguous.
inline std::string float_vector(const std::string& key, int32_t count) {
  return tensor(
      storage("FloatStorage", key, count),
      0,
      integers({count}),
      integers({1}));
}
inline std::string program(const std::string& value) {
  return "\x80\x02" + value + ".";
}

}  // namespace pickle

}  // namespace ckpt_streamer::testing
