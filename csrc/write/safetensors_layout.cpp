#include "write/safetensors_layout.h"

#include <algorithm>
#include <numeric>

#include "base/byte_range.h"
#include "base/error.h"
#include "format/safetensors.h"
#include "write/text_buffer.h"

namespace ckpt_streamer::write {
namespace {

using format::CheckpointIndex;
using format::TensorRecord;

constexpr uint64_t kPrefixBytes = 8;
constexpr uint64_t kHeaderAlignment = 8;

void append_entry(
    std::string& out,
    const CheckpointIndex& index,
    const format::Slot& slot,
    const ByteRange& data) {
  const TensorRecord& tensor = index.tensors[slot.tensor_index];
  append_json_string(out, index.values.text(slot.key));
  out += ":{\"dtype\":\"";
  out += format::safetensors_dtype_name(tensor.dtype);
  out += "\",\"shape\":[";
  const auto sizes = index.sizes(tensor);
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    // Two numbers to an element; see format/safetensors.cpp.
    const int64_t factor = tensor.dtype == format::DType::kFloat4E2M1FNX2 &&
                                   dim + 1 == sizes.size()
                               ? 2
                               : 1;
    out += (dim == 0 ? "" : ",") + std::to_string(sizes[dim] * factor);
  }
  out += "],\"data_offsets\":[" + std::to_string(data.begin) + "," +
         std::to_string(data.end) + "]}";
}

}  // namespace

SafetensorsLayout::SafetensorsLayout(
    const std::string& path,
    const PlannedFile& file)
    : offsets_(file.index.storages.size()) {
  const CheckpointIndex& index = file.index;
  std::vector<uint32_t> order = index.all_slots();
  const auto item_bytes = [&](uint32_t slot) {
    return format::item_size_bytes(
        index.tensors[index.slots[slot].tensor_index].dtype);
  };
  std::stable_sort(
      order.begin(),
      order.end(),
      [&](uint32_t left, uint32_t right) {
        return item_bytes(left) > item_bytes(right);
      });
  std::string header = "{";
  const auto& metadata = index.files.front().metadata;
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const format::MetadataEntry& entry : metadata) {
      append_json_string(header, entry.name);
      header += ':';
      append_json_string(header, entry.value);
      header += ',';
    }
    header.back() = '}';
    header += ',';
  }
  uint64_t data_end = 0;
  for (const uint32_t i : order) {
    const format::Slot& slot = index.slots[i];
    const uint32_t storage = index.tensors[slot.tensor_index].storage_index;
    const ByteRange data{
        data_end,
        data_end + index.storages[storage].file_range.size_bytes()};
    append_entry(header, index, slot, data);
    header += ',';
    offsets_[storage] = data.begin;
    data_end = data.end;
  }
  if (header.size() > 1) {
    header.pop_back();
  }
  header += '}';
  header.resize(round_up(header.size(), kHeaderAlignment), ' ');
  if (header.size() > format::kLargestSafetensorsHeaderBytes) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        path,
        "the header would be of " + std::to_string(header.size()) +
            " bytes, expected at most " +
            std::to_string(format::kLargestSafetensorsHeaderBytes) +
            ", which is what readers of safetensors take");
  }
  append_little_endian(head_, header.size(), kPrefixBytes);
  head_ += header;
  for (uint64_t& offset : offsets_) {
    offset += head_.size();
  }
  size_bytes_ = head_.size() + data_end;
}

}  // namespace ckpt_streamer::write
