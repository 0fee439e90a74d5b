// torch.classes.ckpt_streamer.StreamHandle: a stream of named tensors under a
// memory limit, for eager Python, TorchScript and C++ alike.
//
// All methods may be called from several threads; each call is atomic, and each
// tensor is given to one of them. A window that one enters gives back the pages
// of what others still read: they come back beside the limit. In a forked
// child, unless another thread was inside a call, the handle goes on where it
// was. A tensor outlives its handle: its bytes stay what they are, read from
// the file again when touched, and then count against no limit.
//
// Every method THROWS torch's errors only (see errors.h).
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/conversion.h"
#include "ops/memory_budget.h"
#include "ops/tensor_memory.h"
#include "ops/tensor_source.h"
#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {

class StreamHandle final : public torch::CustomClassHolder {
 public:
  StreamHandle(
      std::unique_ptr<TensorSource> source,
      const stream::Bounds& bounds,
      Conversion conversion);
  ~StreamHandle() override;

  // Whether next() has another tensor. Once it has none, the pages of the last
  // window go back; what is read of tensors that are kept stays within the
  // limit until release(), of a budget an eighth of it.
  // THROWS: then, c10::ValueError as next().
  bool has_next();

  // The next (name, tensor), in the order of the stream. Names are keys joined
  // by '.'. The tensor is a view: see CheckpointTensors::tensor(); from a dict
  // it is the dict's own. If it was converted, see Conversion.
  // THROWS: c10::IndexError past the end; c10::ValueError when the file has
  // shrunk or was written to since it was opened (looked at once a window),
  // when a record is not what its checksum says and the stream verifies, or
  // when the other streams of the budget leave no room: then it can be called
  // again.
  std::tuple<std::string, at::Tensor> next();

  // The tensor of a name, as next() gives it; the stream stays where it is. It
  // counts in the limit, for which the pages of others may go.
  // THROWS: c10::ValueError for a name that no tensor or several have, and as
  // next().
  at::Tensor tensor(const std::string& name);

  // tensor(name)[begin:end], of which only that part is read and converted.
  // THROWS: as tensor(); c10::ValueError for a tensor without dimensions,
  // c10::IndexError unless 0 <= begin <= end <= the size of the first.
  at::Tensor slice(const std::string& name, int64_t begin, int64_t end);

  // All memory held for yielded tensors goes back now. Idempotent; tensors stay
  // valid, and the stream goes on where it is.
  void release();

  // Back to the first tensor, memory released.
  void reset();

  // The number of tensors, each slot counted.
  int64_t len() const;

  // Bytes of the tensors yielded since the start or the last reset, memory
  // shared by several counted once.
  int64_t bytes_streamed();
  // Bytes of file pages dropped so far.
  int64_t bytes_evicted();
  // Bytes of clean file pages of the streamed tensors that are resident now,
  // and of the copies that tensors hold which cannot be used where they are
  // mapped (see CheckpointTensors::tensor()).
  int64_t bytes_resident();
  // The most that bytes_resident() has been, as seen at the end of each window
  // for pages and at each tensor for copies.
  int64_t peak_bytes_resident();

  // All figures at once: those of stats_of(), tensors and tensors_yielded.
  c10::Dict<std::string, int64_t> stats();
  // What could not be held within the limit, and why; empty if all was.
  std::string not_held();
  // See ops::notes().
  std::string notes();

 private:
  StreamHandle(
      std::vector<ByteRange> spans,
      std::unique_ptr<TensorSource>&& source,
      const stream::Bounds& bounds,
      Conversion conversion);
  at::Tensor tensor_at(size_t position);
  PlacedTensor placed_tensor(size_t position);
  at::Tensor look_up(
      size_t position,
      const PlacedTensor& whole,
      const PlacedTensor& part);
  stream::WindowStreamer& checked_streamer();
  void enter(size_t window);
  void release_locked();
  void warn_if_not_held();

  mutable std::mutex mutex_;
  std::unique_ptr<TensorSource> source_;
  Conversion conversion_;
  // At each position, whether a neighbour begins there as well; empty without
  // a conversion.
  std::vector<bool> may_be_tied_;
  // After source_: releases its pages while the source still holds them.
  stream::WindowStreamer streamer_;
  size_t position_ = 0;
  size_t window_ = 0;          // the next one to enter
  bool was_released_ = false;  // since the last one was entered
  bool has_ended_ = false;     // and what it had was given back
  // Whether the one entered last holds a tensor larger than the limit, to be
  // converted in pieces.
  bool reads_in_pieces_ = false;
  bool warned_ = false;
};

// torch.ops.ckpt_streamer.open(str path, int memory_limit_bytes, *,
//     ScalarType? dtype=None, bool verify=False, str[]? select=None,
//     bool drop_page_cache=False,
//     MemoryBudget? budget=None)
c10::intrusive_ptr<StreamHandle> open(
    const std::string& path,
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype,
    bool verify,
    const std::optional<std::vector<std::string>>& select,
    bool drop_page_cache,
    const OptionalBudget& budget);

// torch.ops.ckpt_streamer.open(str[] paths, int memory_limit_bytes, *,
//     ScalarType? dtype=None, bool verify=False, str[]? select=None,
//     bool drop_page_cache=False,
//     MemoryBudget? budget=None)
c10::intrusive_ptr<StreamHandle> open_files(
    const std::vector<std::string>& paths,
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype,
    bool verify,
    const std::optional<std::vector<std::string>>& select,
    bool drop_page_cache,
    const OptionalBudget& budget);

// torch.ops.ckpt_streamer.stream(Dict(str, Tensor), int memory_limit_bytes, *,
//     ScalarType? dtype=None, bool drop_page_cache=False,
//     MemoryBudget? budget=None)
c10::intrusive_ptr<StreamHandle> stream_tensors(
    const c10::Dict<std::string, at::Tensor>& tensors,
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype,
    bool drop_page_cache,
    const OptionalBudget& budget);

}  // namespace ckpt_streamer::ops
