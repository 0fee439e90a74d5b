// The tensors of a checkpoint, made on demand as views of its files' private,
// writable mappings.
//
// Safe to share between threads once built.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/byte_range.h"
#include "format/checkpoint_index.h"
#include "ops/live_storages.h"
#include "ops/mapped_files.h"

namespace ckpt_streamer::ops {

class CheckpointTensors final {
 public:
  // Reads the index of the checkpoint at `path`, or of those at `paths` as one
  // stream (see format/checkpoint_files.h); no tensor's bytes.
  // THROWS: CheckpointError for a file that cannot be opened or read.
  explicit CheckpointTensors(const std::string& path);
  explicit CheckpointTensors(std::span<const std::string> paths);
  ~CheckpointTensors();
  CheckpointTensors(const CheckpointTensors&) = delete;
  CheckpointTensors& operator=(const CheckpointTensors&) = delete;

  [[nodiscard]] const format::CheckpointIndex& index() const noexcept {
    return index_;
  }

  // A view of the record's storage; its nbytes() is the record's. Tensors of
  // one record share one storage as long as one of them lives; made again
  // later, they share its memory. The storage holds the mapping, so a tensor
  // outlives this. Writing to it is copy-on-write and never reaches the file. A
  // record that is not aligned to the elements of all its tensors is copied to
  // memory of its own.
  // REQUIRES: tensor_index < index().tensors.size().
  [[nodiscard]] at::Tensor tensor(uint32_t tensor_index) const;

  // The addresses that the tensor's elements span.
  // REQUIRES: as tensor().
  [[nodiscard]] ByteRange span(uint32_t tensor_index) const;

  // Orders slots of index() as a stream yields them: tensors without bytes
  // first, as given, then file by file, by the offset of the storage and then
  // of the tensor. O(n log n), O(n) if they are so already.
  void sort_in_file_order(std::vector<uint32_t>& slots) const;

  // THROWS: CheckpointError Corrupt when a file has shrunk since it was opened.
  void check_readable() const {
    files_.check_unshrunk();
  }

 private:
  void find_misaligned();
  [[nodiscard]] c10::Storage storage(const format::TensorRecord& tensor) const;

  MappedFiles files_;
  format::CheckpointIndex index_;
  // By storage, whether an element of any of its tensors would be misaligned in
  // the file; those of a storage of bytes may have several dtypes. Empty when
  // none is.
  std::vector<bool> is_misaligned_;
  std::shared_ptr<LiveStorages> live_storages_;
};

}  // namespace ckpt_streamer::ops
