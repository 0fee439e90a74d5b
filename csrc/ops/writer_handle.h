// torch.classes.ckpt_streamer.CheckpointWriter: a checkpoint that is written
// tensor by tensor, for TorchScript, C++ and eager Python alike. Nothing is at
// its path before finish(); a writer that goes without leaves nothing.
//
// All methods may be called from several threads; each call is atomic.
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ops/slot_list.h"
#include "ops/written_elements.h"
#include "write/checkpoint_writer.h"

namespace ckpt_streamer::ops {

using Texts = c10::Dict<std::string, std::string>;

class WriterHandle final : public torch::CustomClassHolder {
 public:
  WriterHandle(
      std::unique_ptr<write::CheckpointWriter> writer,
      uint64_t memory_limit_bytes);

  // Writes a tensor that was declared under the name: its elements, in the
  // declared dtype. Floating-point ones are converted, bit for bit as
  // Tensor.to() does, in pieces of 4 MiB. In any order, each once; a tensor
  // that shares its memory with one that is written already is known, and
  // passed over. One larger than the limit is read as copy_() reads it. THROWS:
  // c10::ValueError for a name that was not declared, another shape, another
  // dtype unless both are floating-point ones, and for a tensor that was
  // declared as a view of memory that it is not a view of, or was written
  // already; c10::Error when the system refuses.
  void write(const std::string& name, const at::Tensor& tensor);

  // The same of those that were declared from a position on.
  void write_from(int64_t begin, const c10::List<at::Tensor>& tensors);

  // Bytes that the files will have, and those of elements written so far.
  int64_t size_bytes();
  int64_t bytes_written();

  // Has the disk keep the files and puts them in their places; then the writer
  // is of no more use. The files; of several, their index first.
  // THROWS: c10::ValueError, naming the first tensor, unless all are written;
  // c10::Error when the system refuses. Whatever was at the path is there
  // still.
  std::vector<std::string> finish();

  // Leaves nothing of it, unless it is finished. Idempotent.
  void close();

 private:
  void write_at(size_t position, const at::Tensor& tensor);
  void check_matches(size_t position, const at::Tensor& tensor) const;
  void check_not_begun(size_t position) const;
  [[nodiscard]] at::Tensor span_of(size_t position, const at::Tensor& tensor)
      const;
  write::CheckpointWriter& open_writer();

  std::mutex mutex_;
  std::unique_ptr<write::CheckpointWriter> writer_;  // null once closed
  std::string path_;
  WrittenElements elements_;
  std::unordered_map<std::string_view, size_t> positions_;  // once asked for
  std::vector<bool> is_written_;                            // by position
  uint64_t written_bytes_ = 0;
};

// torch.ops.ckpt_streamer.create(str path, Dict(str, Tensor) tensors,
//     int memory_limit_bytes, *, str? format, Dict(str, str)? metadata,
//     int shard_size_bytes, str tied, bool drop_page_cache)
//
// `tensors`: of each, name, dtype, shape, and which of them share memory; meta
// tensors will do, nothing of them is read or held.
// THROWS: c10::ValueError for a limit that is not positive, names, formats and
// texts that are not known, and as write::make_plan(); c10::Error when the
// system refuses.
c10::intrusive_ptr<WriterHandle> create(
    const std::string& path,
    const c10::Dict<std::string, at::Tensor>& tensors,
    int64_t memory_limit_bytes,
    const std::optional<std::string>& format,
    const std::optional<Texts>& metadata,
    int64_t shard_size_bytes,
    const std::string& tied,
    bool drop_page_cache);

// torch.ops.ckpt_streamer._without_data(...): tensors of a checkpoint on the
// meta device, one for each name, with the strides and bits that they have in
// the file, of which nothing is read. THROWS: c10::NotImplementedError, naming
// the target and the first tensor, unless all are strided.
std::vector<at::Tensor> without_data(
    const c10::intrusive_ptr<SlotList>& slots,
    const std::vector<std::string>& names,
    const std::string& path);

// torch.ops.ckpt_streamer._create(...): of tensors of a checkpoint, in the
// order of its stream, under other names. With `templates`, one for each, those
// say dtype and shape instead.
c10::intrusive_ptr<WriterHandle> create_from_slots(
    const c10::intrusive_ptr<SlotList>& slots,
    std::vector<std::string> names,
    const std::optional<std::vector<at::Tensor>>& templates,
    bool keeps_tree,
    const std::string& path,
    int64_t memory_limit_bytes,
    const std::optional<std::string>& format,
    std::optional<at::ScalarType> dtype,
    const Texts& metadata,
    int64_t shard_size_bytes,
    const std::string& tied,
    const std::string& opaque,
    bool drop_page_cache);

}  // namespace ckpt_streamer::ops
