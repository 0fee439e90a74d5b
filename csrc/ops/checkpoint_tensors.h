// The tensors of a checkpoint, made on demand as views of its files' private,
// writable mappings.
//
// Safe to share between threads once built.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Storage.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/byte_range.h"
#include "format/checkpoint_index.h"
#include "format/memory_pieces.h"
#include "ops/live_storages.h"
#include "ops/mapped_files.h"
#include "ops/tensor_memory.h"
#include "ops/verified_records.h"

namespace ckpt_streamer::ops {

enum class Verify : bool { kOff, kOn };

class CheckpointTensors final {
 public:
  // Reads the index of the checkpoint at `path`, or of those at `paths` as one
  // stream (see format/checkpoint_files.h); no tensor's bytes. The limit is
  // that of what is copied as one, see tensor(). THROWS: CheckpointError for a
  // file that cannot be opened or read.
  //
  // With Verify::kOn, records are held against their files' checksums: those
  // that the index was read from now, others before tensor() first returns one
  // of their tensors.
  // THROWS: Unsupported for a file without checksums, Corrupt for a record that
  // is not what its checksum says.
  CheckpointTensors(
      const std::string& path,
      uint64_t memory_limit_bytes,
      Verify verify = Verify::kOff);
  CheckpointTensors(
      std::span<const std::string> paths,
      uint64_t memory_limit_bytes,
      Verify verify = Verify::kOff);
  ~CheckpointTensors();
  CheckpointTensors(const CheckpointTensors&) = delete;
  CheckpointTensors& operator=(const CheckpointTensors&) = delete;

  [[nodiscard]] const format::CheckpointIndex& index() const noexcept {
    return index_;
  }

  // What torch.load makes, but for the class: a parameter or another subclass
  // is a plain tensor. Mostly a view of the record's storage; its nbytes() is
  // the record's. What a sparse or nested tensor is made of are such views, a
  // quantized tensor is one.
  //
  // Tensors of one record share one storage as long as one of them lives; made
  // again later, they share its memory. The storage holds the mapping, so a
  // tensor outlives this. Writing to it is copy-on-write and never reaches the
  // file.
  //
  // A record that is not aligned to the elements of all its tensors is read
  // into memory of its own when the first of its tensors is made, and that
  // memory lives as long as one of them does: what is written to one is seen in
  // the others, and gone with the last. If the record is larger than the memory
  // limit, only the tensors that overlap share a storage, which then holds no
  // more than they span (format/memory_pieces.h).
  // REQUIRES: tensor_index < index().tensors.size().
  // THROWS: CheckpointError Corrupt when a record to be read is no longer there
  // or not what its checksum says, Io when it cannot be; Corrupt for a sparse
  // or nested tensor whose data contradicts it, which is read for that.
  [[nodiscard]] at::Tensor tensor(uint32_t tensor_index) const;

  // The elements of a tensor that is a plain contiguous view of the mapping,
  // which lives as long as this; none of any other tensor.
  // REQUIRES, THROWS: as tensor().
  [[nodiscard]] std::optional<ContiguousElements> elements(
      uint32_t tensor_index) const;

  // REQUIRES: as tensor().
  [[nodiscard]] PlacedTensor placed_tensor(uint32_t tensor_index) const {
    return {tensor(tensor_index), source_address(tensor_index)};
  }

  // A tensor, or as value_of() gives it (see node_values.h).
  // REQUIRES: a node of index().values.
  [[nodiscard]] c10::IValue value(format::NodeId node) const;

  // Memory that holds such copies now.
  [[nodiscard]] uint64_t copied_bytes() const noexcept {
    return copied_bytes_->load(std::memory_order_relaxed);
  }

  // The addresses that the tensor's elements span. Of one that is copied,
  // addresses where nothing is ever mapped, as many as bytes are copied with it
  // and the same for all that share the copy: they count when windows are cut,
  // and have no pages. Of one that is made of others, all that lies between
  // their first and their last address; those that are copied beside others
  // that are not do not count. REQUIRES: as tensor().
  [[nodiscard]] ByteRange span(uint32_t tensor_index) const;

  // Where its first element is mapped, or would be if it were not copied; 0 for
  // a tensor without elements.
  // REQUIRES: as tensor().
  [[nodiscard]] uint64_t source_address(uint32_t tensor_index) const;

  // Orders slots of index() as a stream yields them: tensors without bytes
  // first, as given, then file by file, by the offset of the storage and then
  // of the tensor. O(n log n), O(n) if they are so already.
  void sort_in_file_order(std::vector<uint32_t>& slots) const;

  // THROWS: CheckpointError as os::File::check_unchanged() of each file.
  void check_unchanged() const {
    files_.check_unchanged();
  }

 private:
  using ByteCount = std::atomic<uint64_t>;

  void map_files(uint64_t memory_limit_bytes, Verify verify);
  // REQUIRES: a tensor with bytes in the file.
  [[nodiscard]] uint64_t mapping_begin(uint32_t tensor_index) const;
  // REQUIRES: a tensor with a storage.
  [[nodiscard]] ByteRange span_of_view(uint32_t tensor_index) const;
  [[nodiscard]] at::Tensor without_grad(uint32_t tensor_index) const;
  // Sets `empty`, or a plain tensor when it is undefined, to its storage.
  // REQUIRES: as span_of_view().
  [[nodiscard]] at::Tensor view(uint32_t tensor_index, at::Tensor empty) const;
  [[nodiscard]] c10::Storage storage(
      uint32_t storage_index,
      const format::MemoryPiece& piece) const;
  // The file's bytes in memory of their own, counted while it lives.
  [[nodiscard]] c10::DataPtr copy(const os::File& file, const ByteRange& range)
      const;

  MappedFiles files_;
  const format::CheckpointIndex index_;
  const format::MemoryPieces pieces_;
  const std::shared_ptr<LiveStorages> live_storages_;
  const std::shared_ptr<ByteCount> copied_bytes_;
  std::unique_ptr<VerifiedRecords> verified_;  // null without Verify::kOn
};

}  // namespace ckpt_streamer::ops
