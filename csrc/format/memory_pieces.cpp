#include "format/memory_pieces.h"

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

namespace ckpt_streamer::format {
namespace {

// A multiple of every element's size.
constexpr uint64_t kLargestItemBytes = 16;

// c10/util/complex.h aligns complex numbers to both their parts, and loops over
// them are compiled to instructions that fault on less.
uint64_t alignment_bytes(DType dtype) noexcept {
  return item_size_bytes(dtype);
}

}  // namespace

MemoryPieces::MemoryPieces(const CheckpointIndex& index, uint64_t limit_bytes)
    : index_(index) {
  const auto is_aligned = [&](const TensorRecord& tensor) {
    return tensor.storage_index == kNoStorage ||
           index.storages[tensor.storage_index].file_range.begin %
                   alignment_bytes(tensor.dtype) ==
               0;
  };
  for (const TensorRecord& tensor : index.tensors) {
    if (is_aligned(tensor)) {
      continue;
    }
    if (is_copied_.empty()) {
      is_copied_.resize(index.storages.size());
    }
    // One tensor that cannot be read in place is enough: all share the memory.
    is_copied_[tensor.storage_index] = true;
    if (index.storages[tensor.storage_index].file_range.size_bytes() >
        limit_bytes) {
      is_split_.resize(index.storages.size());
      is_split_[tensor.storage_index] = true;
    }
  }
  if (is_split_.empty()) {
    return;
  }
  std::vector<uint32_t> tensors;  // of storages that are split
  for (uint32_t i = 0; i < index.tensors.size(); ++i) {
    const uint32_t storage = index.tensors[i].storage_index;
    if (storage != kNoStorage && is_split_[storage]) {
      tensors.push_back(i);
    }
  }
  split(std::move(tensors));
}

void MemoryPieces::split(std::vector<uint32_t> tensors) {
  const auto place = [&](uint32_t tensor) {
    return std::tuple(
        index_.tensors[tensor].storage_index,
        index_.file_range(index_.tensors[tensor]).begin);
  };
  std::sort(tensors.begin(), tensors.end(), [&](uint32_t left, uint32_t right) {
    return place(left) < place(right);
  });
  for (const uint32_t tensor : tensors) {
    const uint32_t storage = index_.tensors[tensor].storage_index;
    const ByteRange range = index_.file_range(index_.tensors[tensor]);
    if (range.empty()) {
      continue;
    }
    SplitPiece* const last =
        split_pieces_.empty() ? nullptr : &split_pieces_.back();
    if (last != nullptr && last->storage_index == storage &&
        range.begin < last->file_range.end) {
      last->file_range.end = std::max(last->file_range.end, range.end);
    } else {
      split_pieces_.push_back({storage, range});
    }
  }
}

MemoryPiece MemoryPieces::piece_of(uint32_t tensor_index) const {
  const TensorRecord& tensor = index_.tensors[tensor_index];
  const uint32_t storage = tensor.storage_index;
  const bool copied = is_copied(storage);
  const ByteRange& whole = index_.storages[storage].file_range;
  if (!copied || is_split_.empty() || !is_split_[storage]) {
    return {storage, copied, whole};
  }
  const ByteRange range = index_.file_range(tensor);
  if (range.empty()) {
    return {storage, copied, {whole.begin, whole.begin}};
  }
  // The last piece that begins at the tensor or in front of it.
  const auto behind = std::upper_bound(
      split_pieces_.begin(),
      split_pieces_.end(),
      std::tuple(storage, range.begin),
      [](const auto& wanted, const SplitPiece& piece) {
        return wanted < std::tuple(piece.storage_index, piece.file_range.begin);
      });
  const auto piece = std::prev(behind);
  const auto number = index_.storages.size() +
                      static_cast<size_t>(piece - split_pieces_.begin());
  // Elements are counted from the storage's begin, so the piece's has to be at
  // a whole number of them.
  const uint64_t begin =
      whole.begin +
      round_down(piece->file_range.begin - whole.begin, kLargestItemBytes);
  return {
      static_cast<uint32_t>(number),
      copied,
      {begin, piece->file_range.end}};
}

}  // namespace ckpt_streamer::format
