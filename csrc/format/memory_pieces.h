// What memory a checkpoint's tensors are to be made in: storages that are
// aligned to their elements in the file can be used where it is mapped, others
// have to be copied.
//
// A piece is what is copied, or mapped, as one and becomes one storage in
// memory. That is a whole StorageRecord, so that its tensors share a storage as
// in torch.load. Only of an unaligned one that is larger than `limit_bytes`,
// which could not be copied within it, each run of tensors that overlap is a
// piece of its own: their elements stay shared, and those of tensors that do
// not overlap are not copied along.
//
// Pure arithmetic. Safe to share between threads once built.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/byte_range.h"
#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

struct MemoryPiece {
  uint32_t number = 0;   // equal numbers are the same piece
  bool is_copy = false;  // else its bytes are used where they are mapped
  ByteRange file_range;  // absolute
};

class MemoryPieces {
 public:
  // REQUIRES: the index was validated by its reader, and outlives this.
  // Cost: O(tensors), and a sort of those in storages that are split.
  MemoryPieces(const CheckpointIndex& index, uint64_t limit_bytes);

  // Numbers are [0, count()).
  [[nodiscard]] size_t count() const noexcept {
    return index_.storages.size() + split_pieces_.size();
  }

  // Whether the storage's bytes are to be copied, in one piece or several.
  [[nodiscard]] bool is_copied(uint32_t storage_index) const noexcept {
    return !is_copied_.empty() && is_copied_[storage_index];
  }

  // ENSURES: the piece begins at a whole number of the tensor's elements in
  // front of the tensor's, and holds all of them.
  // REQUIRES: tensor_index < index.tensors.size(), of a tensor with a storage.
  [[nodiscard]] MemoryPiece piece_of(uint32_t tensor_index) const;

 private:
  void split(std::vector<uint32_t> tensors);

  struct SplitPiece {
    uint32_t storage_index;
    ByteRange file_range;  // that its tensors span; disjoint
  };

  const CheckpointIndex& index_;
  std::vector<bool> is_copied_;           // by storage; empty if none is
  std::vector<bool> is_split_;            // likewise
  std::vector<SplitPiece> split_pieces_;  // by storage and begin
};

}  // namespace ckpt_streamer::format
