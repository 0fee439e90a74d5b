// The tensors of a checkpoint, made on demand as views of its files' private,
// writable mappings.
#pragma once

#include <c10/core/Storage.h>
#include <c10/util/intrusive_ptr.h>

#include <span>
#include <string>
#include <vector>

#include "format/checkpoint_index.h"
#include "ops/mapped_files.h"
#include "ops/tensor_source.h"

namespace ckpt_streamer::ops {

class FileSource final : public TensorSource {
 public:
  // Reads the index of the checkpoint at `path`, or of those at `paths` as one
  // stream (see format/checkpoint_files.h); no tensor's bytes.
  // THROWS: CheckpointError for a file that cannot be opened or read.
  explicit FileSource(const std::string& path);
  explicit FileSource(std::span<const std::string> paths);

  [[nodiscard]] std::vector<ByteRange> spans() const override;
  [[nodiscard]] std::string name(size_t index) const override;

  // A view of the record's storage; its nbytes() is the record's. The tensors
  // of one record come one after the other and share one storage as long as one
  // of them lives; made again later, they share its memory. The storage holds
  // the mapping, so a tensor outlives this source. Writing to it is
  // copy-on-write and never reaches the file. A record that is not aligned to
  // its elements' size is copied to memory of its own.
  [[nodiscard]] at::Tensor tensor(size_t index) override;

  void check_readable() const override;

 private:
  using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

  // Maps the files of index_ and sorts its slots.
  void prepare();
  [[nodiscard]] c10::Storage storage(const format::TensorRecord& tensor);

  MappedFiles files_;
  format::CheckpointIndex index_;
  std::vector<uint32_t> order_;  // of index_.slots
  // The storage made last; none at first. Not one for each record: a weak
  // reference keeps its block allocated, and a block left behind each tensor
  // splits the heap, so that what the caller frees cannot be used again.
  uint32_t last_storage_index_ = 0;
  WeakStorage last_storage_;
};

}  // namespace ckpt_streamer::ops
