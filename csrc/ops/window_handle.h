// torch.classes.ckpt_streamer._WindowHandle: the same engine for eager Python,
// which cannot afford a call for each tensor. Of tensors in memory it walks its
// own tree, adds many at once, plans, and comes back once a window; those of a
// file are planned at once. Before plan() and after close(), the other methods
// are errors.
//
// Private to the Python package. All methods may be called from several
// threads; each call is atomic.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ops/checkpoint_tensors.h"
#include "ops/conversion.h"
#include "ops/memory_budget.h"
#include "ops/storage_holders.h"
#include "ops/tensor_memory.h"
#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {

// Tensors that WindowHandle::add() was given. The last reference to a tensor
// that Python knows as well is best dropped by Python, which holds its lock
// then: dropped in here, each tensor would take it and give it back.
struct Lot final : torch::CustomClassHolder {
  explicit Lot(c10::List<at::Tensor> given) : tensors(std::move(given)) {}

  c10::List<at::Tensor> tensors;
};

class WindowHandle final : public torch::CustomClassHolder {
 public:
  explicit WindowHandle(const stream::Bounds& bounds);
  // Planned already. `spans`: the addresses of the tensors' elements in that
  // order, in the mappings of `checkpoint`, which is held until close(). With a
  // dtype, a part of the limit is left for what converted() makes, and for
  // memory that such results have left: more if some are large (is_large()).
  // THROWS: c10::ValueError for a dtype that Conversion refuses,
  // CheckpointError as stream::WindowStreamer.
  WindowHandle(
      const stream::Bounds& bounds,
      std::shared_ptr<const CheckpointTensors> checkpoint,
      std::vector<ByteRange> spans,
      std::optional<at::ScalarType> dtype,
      bool makes_large_results);
  ~WindowHandle() override;

  // Adds tensors to the stream; c10::Error after plan(). Many are best added in
  // lots that fit the processor's caches: a tensor is looked at several times.
  // Holds what keeps their memory mapped, until plan(); from then on, of
  // file-backed ones only. The result is for dropping.
  c10::intrusive_ptr<Lot> add(c10::List<at::Tensor> tensors);

  // Sorts them and cuts them into windows, once.
  void plan();

  // int64 [n]: the tensors' indices in the order of the stream; int64 [0] when
  // that is the order given.
  at::Tensor order() const;

  // int64 [windows]: the position in that order behind each window's last. Of
  // a budget, of the windows entered so far.
  at::Tensor window_ends() const;

  // Makes a window live, by its index, and returns its end. c10::IndexError if
  // there is none (of a budget, it may be the one behind the last so far),
  // c10::ValueError as check_unchanged(), and if a budget has no room.
  int64_t enter(int64_t window);

  // Makes one tensor live, by its position in the order; c10::IndexError if
  // there is none, c10::ValueError if a budget has no room.
  void admit(int64_t position);

  // Makes tensors live, from the first position on: as many as can be live
  // together, at least one; what was live goes if need be. Returns their
  // number. REQUIRES: there are such positions. THROWS: c10::ValueError as
  // enter().
  size_t admit_some(std::span<const size_t> positions);

  // The tensors at positions from `begin` on, in the window that was entered
  // last, in the dtype of the constructor (see Conversion): as many as the part
  // of the limit that is left for them takes, at least one. `elements_at`: as
  // Conversion::of_elements() takes them, of those that are tied to no other.
  // Of these, large ones are left as they are, for convert() when their turn
  // comes: one result at a time stays in the processor's caches. With the
  // tensors, which these are; empty for none.
  // REQUIRES: begin < end, a position in that window or behind its last.
  std::tuple<c10::List<at::Tensor>, c10::List<bool>> converted(
      size_t begin,
      size_t end,
      const std::function<PlacedTensor(size_t)>& tensor_at,
      const std::function<std::optional<ContiguousElements>(size_t)>&
          elements_at);

  // One of those that converted() left. c10::Error after close().
  at::Tensor convert(const at::Tensor& tensor);

  // As ops::read_part() of the tensor at a position.
  // THROWS: c10::ValueError as enter().
  at::Tensor read_part(
      size_t position,
      const PlacedTensor& whole,
      const PlacedTensor& part,
      Conversion& conversion);

  // Bytes of the tensors outside private file mappings, as on the heap: not
  // bounded. Shared ones once.
  int64_t unmapped_bytes() const;

  // Bytes that all tensors cover, shared ones once, wherever they are.
  int64_t covered_bytes() const;

  // THROWS: c10::ValueError when a file of the checkpoint has shrunk or was
  // written to since it was opened.
  void check_unchanged() const;

  // Drops all clean pages, and memory that results have left. Idempotent.
  void release();

  // Releases and lets go of the storages; afterwards only release(), close(),
  // stats(), not_held() and notes() still work. `yielded_count` as in stats().
  void close(int64_t yielded_count);

  // See stats_of(); after the first `yielded_count` tensors of the order. After
  // close(), those at that moment.
  c10::Dict<std::string, int64_t> stats(int64_t yielded_count);

  // See ops::not_held().
  std::string not_held() const;
  // See ops::notes().
  std::string notes();

 private:
  uint64_t streamed_bytes(int64_t yielded_count) const;
  void check_open() const;
  void check_files() const;
  void note_copies();
  // The streamer's, against the whole limit.
  stream::StreamFigures figures() const;
  void warn_if_not_held();
  stream::WindowStreamer& open_streamer();

  mutable std::mutex mutex_;
  const stream::Bounds bounds_;
  std::shared_ptr<const CheckpointTensors> checkpoint_;  // null without files
  const std::optional<at::ScalarType> dtype_;
  // 0 without a dtype:
  const uint64_t lot_bytes_;   // of what converted() makes at once
  const uint64_t kept_bytes_;  // of memory that results have left
  const std::shared_ptr<ResultMemory> result_memory_;  // null without a dtype
  Conversion conversion_;
  // Of the tensors as they were added.
  std::vector<TensorMemory> memory_;
  StorageHolders holders_;
  std::vector<int64_t> order_;
  // After holders_ and checkpoint_: its destructor drops pages that they keep
  // mapped.
  std::unique_ptr<stream::WindowStreamer> streamer_;
  stream::StreamFigures closed_figures_;
  stream::MemoryKinds closed_memory_kinds_;
  uint64_t closed_streamed_bytes_ = 0;
  bool is_planned_ = false;
  // Whether the window entered last holds a tensor larger than the limit, to be
  // converted in pieces.
  bool reads_in_pieces_ = false;
  bool warned_ = false;
};

// torch.ops.ckpt_streamer._windows(int memory_limit_bytes, bool
// drop_page_cache, MemoryBudget? budget). THROWS: c10::ValueError for a limit
// that is not positive.
c10::intrusive_ptr<WindowHandle> make_windows(
    int64_t memory_limit_bytes,
    bool drop_page_cache,
    const OptionalBudget& budget);

}  // namespace ckpt_streamer::ops
