// torch.classes.ckpt_streamer._Slots: tensors of a checkpoint in the order of a
// stream, for eager Python, which asks for many at once.
//
// Private to the Python package. Immutable: all methods may be called from
// several threads. Ranges [begin, end) are positions in the order;
// c10::IndexError for one that is empty or outside.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/checkpoint_tensors.h"
#include "ops/window_handle.h"

namespace ckpt_streamer::ops {

class SlotList final : public torch::CustomClassHolder {
 public:
  // `slots`: of the checkpoint's index, in the order of the stream.
  SlotList(
      std::shared_ptr<const CheckpointTensors> checkpoint,
      std::vector<uint32_t> slots);

  [[nodiscard]] const format::CheckpointIndex& index() const noexcept {
    return checkpoint_->index();
  }
  // Positions in index().slots, in the order of the stream.
  [[nodiscard]] const std::vector<uint32_t>& slots() const noexcept {
    return slots_;
  }

  int64_t len() const {
    return static_cast<int64_t>(slots_.size());
  }

  // Their dotted names, as TextLot::take().
  c10::IValue names(int64_t begin, int64_t end) const;

  // Their keys: as TextLot::take() if all are strings, else int64 [end -
  // begin], their nodes, -1 where there is none.
  c10::IValue keys(int64_t begin, int64_t end) const;

  // int64 [end - begin]: the nodes of the containers that hold them, -1 where
  // none does; int64 [1] if all are in one.
  at::Tensor containers(int64_t begin, int64_t end) const;

  // What they are, without making one: their dtypes as TextLot::take(); int64
  // [end - begin, 6]: the kind (format::TensorKind), how many dimensions, the
  // storage (-1 without one), the file, and where in it their bytes begin and
  // end; int64 [...]: their sizes, one behind the other.
  std::tuple<c10::IValue, at::Tensor, at::Tensor> describe(
      int64_t begin,
      int64_t end) const;

  // Views of the files; see CheckpointTensors::tensor(). THROWS: torch's errors
  // (see errors.h).
  c10::List<at::Tensor> tensors(int64_t begin, int64_t end) const;

  // The tensors from `begin` on in the dtype of `windows`, which is windows()
  // of these and has entered theirs: as many as WindowHandle::converted()
  // makes, and which of them it leaves.
  std::tuple<c10::List<at::Tensor>, c10::List<bool>> converted(
      int64_t begin,
      int64_t end,
      const c10::intrusive_ptr<WindowHandle>& windows) const;

  // Those whose names match a pattern (format/name_glob.h).
  // THROWS: c10::ValueError for patterns that match none.
  c10::intrusive_ptr<SlotList> matching(
      const std::vector<std::string>& patterns) const;

  // Those at the positions, int64 [n] and ascending.
  c10::intrusive_ptr<SlotList> at(const at::Tensor& positions) const;

  // The engine that keeps them within the limit; its positions are these. With
  // a dtype, for converted().
  c10::intrusive_ptr<WindowHandle> windows(
      int64_t memory_limit_bytes,
      std::optional<at::ScalarType> dtype,
      bool drop_page_cache,
      const OptionalBudget& budget) const;

 private:
  void check_range(int64_t begin, int64_t end) const;
  [[nodiscard]] const format::Slot& slot(size_t position) const {
    return checkpoint_->index().slots[slots_[position]];
  }

  std::shared_ptr<const CheckpointTensors> checkpoint_;
  std::vector<uint32_t> slots_;
};

}  // namespace ckpt_streamer::ops
