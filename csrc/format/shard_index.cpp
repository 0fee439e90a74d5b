#include "format/shard_index.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <span>

#include "base/error.h"
#include "format/json.h"
#include "format/name_index.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr uint64_t kLargestIndexBytes = 100'000'000;
constexpr uint64_t kHeadBytes = 4096;

class ShardIndexReader {
 public:
  ShardIndexReader(const ByteSource& source, std::string_view text)
      : source_(source),
        json_(text, {source.path(), "the index of shards", 0}) {}

  ShardIndex read() {
    json_.enter_object("the index");
    while (const auto name = json_.next_name()) {
      if (*name == "weight_map") {
        expect_first("weight_map", has_weight_map_);
        read_weight_map();
      } else if (*name == "metadata") {
        expect_first("metadata", has_metadata_);
        read_metadata();
      } else {
        json_.skip_value("a field");
      }
    }
    json_.expect_end();
    if (!has_weight_map_) {
      fail(
          "is a JSON object without 'weight_map', expected an index of shards",
          0);
    }
    return std::move(index_);
  }

 private:
  void expect_first(const char* field, bool& is_read) {
    if (std::exchange(is_read, true)) {
      fail(
          std::string("has '") + field + "' twice, expected it once",
          json_.file_offset());
    }
  }

  void read_weight_map();
  void read_metadata();
  void check_shard_name(std::string_view name, uint64_t file_offset) const;
  void number_shards(const std::vector<std::string_view>& shard_of_placement);

  [[noreturn]] void fail(const std::string& what, uint64_t file_offset) const {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source_.path(),
        what,
        file_offset);
  }

  const ByteSource& source_;
  JsonReader json_;
  ShardIndex index_;
  bool has_weight_map_ = false;
  bool has_metadata_ = false;
};

void ShardIndexReader::read_weight_map() {
  const uint64_t begin = json_.file_offset();
  std::vector<std::string_view> tensor_names;
  std::vector<std::string_view> shard_of_placement;
  json_.enter_object("weight_map");
  while (const auto tensor_name = json_.next_name()) {
    json_.set_subject("tensor", *tensor_name);
    const uint64_t value_offset = json_.file_offset();
    const std::string_view shard = json_.read_string("the shard");
    // Tensors of one shard mostly stand together.
    if (shard_of_placement.empty() || shard_of_placement.back() != shard) {
      check_shard_name(shard, value_offset);
    }
    tensor_names.push_back(*tensor_name);
    shard_of_placement.push_back(shard);
    index_.placements.push_back({std::string(*tensor_name), 0});
  }
  json_.set_subject({}, {});
  if (tensor_names.empty()) {
    fail("has an empty 'weight_map', expected a shard for each tensor", begin);
  }
  const NameIndex distinct(std::move(tensor_names));
  if (distinct.duplicate().has_value()) {
    fail(
        "has the tensor " +
            quoted(
                index_.placements[distinct.duplicate()->second].tensor_name) +
            " twice in 'weight_map', expected distinct names",
        begin);
  }
  number_shards(shard_of_placement);
}

void ShardIndexReader::number_shards(
    const std::vector<std::string_view>& shard_of_placement) {
  std::vector<uint32_t> order(shard_of_placement.size());
  std::iota(order.begin(), order.end(), uint32_t{0});
  std::stable_sort(
      order.begin(),
      order.end(),
      [&](uint32_t left, uint32_t right) {
        return shard_of_placement[left] < shard_of_placement[right];
      });
  for (const uint32_t i : order) {
    if (index_.shard_names.empty() ||
        index_.shard_names.back() != shard_of_placement[i]) {
      index_.shard_names.emplace_back(shard_of_placement[i]);
    }
    index_.placements[i].shard =
        static_cast<uint32_t>(index_.shard_names.size() - 1);
  }
}

// '/' alone divides names, as in the repositories that these files come from.
void ShardIndexReader::check_shard_name(
    std::string_view name,
    uint64_t file_offset) const {
  const auto refuse = [&](const char* found) {
    fail(
        "has the shard " + quoted(name) + ", which " + found +
            "; expected a path inside the index's directory",
        file_offset);
  };
  if (name.empty()) {
    refuse("is empty");
  }
  if (name.find('\0') != std::string_view::npos) {
    refuse("holds a NUL character");
  }
  if (name.front() == '/') {
    refuse("is absolute");
  }
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") {
      refuse("has a '..' part");
    }
    begin = end + 1;
  }
}

void ShardIndexReader::read_metadata() {
  if (json_.peek("the metadata") == JsonKind::kNull) {
    json_.skip_value("the metadata");
    return;
  }
  json_.enter_object("the metadata");
  while (const auto name = json_.next_name()) {
    const bool is_string = json_.peek("a metadata value") == JsonKind::kString;
    index_.metadata.push_back(
        {std::string(*name),
         std::string(
             is_string ? json_.read_string("a metadata value")
                       : json_.skip_value("a metadata value"))});
  }
}

}  // namespace

bool is_json_object(const ByteSource& source) {
  std::string head(std::min(source.size_bytes(), kHeadBytes), '\0');
  source.read(0, std::as_writable_bytes(std::span(head)));
  const size_t first = head.find_first_not_of(" \n\r\t");
  return first != std::string::npos && head[first] == '{';
}

ShardIndex read_shard_index(const ByteSource& source) {
  if (source.size_bytes() > kLargestIndexBytes) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        "is JSON of " + std::to_string(source.size_bytes()) +
            " bytes, expected an index of shards of at most " +
            std::to_string(kLargestIndexBytes));
  }
  const auto size = static_cast<size_t>(source.size_bytes());
  const auto buffer = std::make_unique_for_overwrite<char[]>(size);
  source.read(0, std::as_writable_bytes(std::span(buffer.get(), size)));
  return ShardIndexReader(source, {buffer.get(), size}).read();
}

}  // namespace ckpt_streamer::format
