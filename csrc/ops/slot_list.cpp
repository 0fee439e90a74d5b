#include "ops/slot_list.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>
#include <utility>

#include "format/name_glob.h"
#include "format/slot_names.h"
#include "ops/errors.h"
#include "ops/node_values.h"
#include "ops/scalar_types.h"
#include "os/heap.h"

namespace ckpt_streamer::ops {
namespace {

int64_t number_of(format::NodeId node) {
  return node == format::kNoNode ? -1 : static_cast<int64_t>(node);
}

}  // namespace

SlotList::SlotList(
    std::shared_ptr<const CheckpointTensors> checkpoint,
    std::vector<uint32_t> slots)
    : checkpoint_(std::move(checkpoint)), slots_(std::move(slots)) {}

void SlotList::check_range(int64_t begin, int64_t end) const {
  TORCH_CHECK_INDEX(
      begin >= 0 && begin < end && end <= len(),
      "slots [",
      begin,
      ", ",
      end,
      ") of ",
      len());
}

c10::IValue SlotList::names(int64_t begin, int64_t end) const {
  check_range(begin, end);
  format::SlotNames names(checkpoint_->index());
  TextLot lot;
  for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
    lot.add(names.name(slots_[i]));
  }
  return std::move(lot).take();
}

c10::IValue SlotList::keys(int64_t begin, int64_t end) const {
  check_range(begin, end);
  const format::ValueTree& tree = checkpoint_->index().values;
  const auto lot = std::span(slots_).subspan(
      static_cast<size_t>(begin),
      static_cast<size_t>(end - begin));
  const auto key_of = [this](uint32_t slot) {
    return checkpoint_->index().slots[slot].key;
  };
  if (std::all_of(lot.begin(), lot.end(), [&](uint32_t slot) {
        return key_of(slot) != format::kNoNode &&
               tree.kind(key_of(slot)) == format::NodeKind::kString;
      })) {
    TextLot texts;
    for (const uint32_t slot : lot) {
      texts.add(tree.text(key_of(slot)));
    }
    return std::move(texts).take();
  }
  at::Tensor keys = at::empty({end - begin}, at::kLong);
  std::transform(
      lot.begin(),
      lot.end(),
      keys.mutable_data_ptr<int64_t>(),
      [&](uint32_t slot) { return number_of(key_of(slot)); });
  return keys;
}

at::Tensor SlotList::containers(int64_t begin, int64_t end) const {
  check_range(begin, end);
  const auto first = static_cast<size_t>(begin);
  const auto last = static_cast<size_t>(end);
  bool is_one = true;
  for (size_t i = first; i < last && is_one; ++i) {
    is_one = slot(i).container == slot(first).container;
  }
  const size_t count = is_one ? 1 : last - first;
  at::Tensor result = at::empty({static_cast<int64_t>(count)}, at::kLong);
  auto* const nodes = result.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < count; ++i) {
    nodes[i] = number_of(slot(first + i).container);
  }
  return result;
}

std::tuple<c10::IValue, at::Tensor, at::Tensor> SlotList::describe(
    int64_t begin,
    int64_t end) const {
  check_range(begin, end);
  const format::CheckpointIndex& index = checkpoint_->index();
  constexpr int64_t kColumns = 6;
  at::Tensor table = at::empty({end - begin, kColumns}, at::kLong);
  auto* row = table.mutable_data_ptr<int64_t>();
  TextLot dtypes;
  std::vector<int64_t> all_sizes;
  for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
    const uint32_t tensor_index = slot(i).tensor_index;
    const format::TensorRecord& tensor = index.tensors[tensor_index];
    const ByteRange range = index.file_range(tensor);
    const auto sizes = index.sizes(tensor);
    all_sizes.insert(all_sizes.end(), sizes.begin(), sizes.end());
    dtypes.add(format::dtype_name(tensor.dtype));
    for (const int64_t value :
         {static_cast<int64_t>(tensor.kind),
          static_cast<int64_t>(tensor.dim_count),
          tensor.storage_index == format::kNoStorage
              ? int64_t{-1}
              : static_cast<int64_t>(tensor.storage_index),
          static_cast<int64_t>(index.file_index(tensor_index)),
          static_cast<int64_t>(range.begin),
          static_cast<int64_t>(range.end)}) {
      *row++ = value;
    }
  }
  return {
      std::move(dtypes).take(),
      std::move(table),
      at::tensor(all_sizes, at::kLong)};
}

c10::List<at::Tensor> SlotList::tensors(int64_t begin, int64_t end) const {
  check_range(begin, end);
  c10::List<at::Tensor> result;
  result.reserve(static_cast<size_t>(end - begin));
  with_torch_errors([&] {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end);
         ++i) {
      result.push_back(checkpoint_->tensor(slot(i).tensor_index));
    }
  });
  os::fill_small_block_caches();
  return result;
}

std::tuple<c10::List<at::Tensor>, c10::List<bool>> SlotList::converted(
    int64_t begin,
    int64_t end,
    const c10::intrusive_ptr<WindowHandle>& windows) const {
  check_range(begin, end);
  const auto address_of = [this](size_t position) {
    return checkpoint_->source_address(slot(position).tensor_index);
  };
  // Tied tensors come one after the other; only those need to be remembered.
  const auto may_be_tied = [&](size_t position, uint64_t address) {
    return (position > 0 && address_of(position - 1) == address) ||
           (position + 1 < slots_.size() &&
            address_of(position + 1) == address);
  };
  return with_torch_errors([&] {
    return windows->converted(
        static_cast<size_t>(begin),
        static_cast<size_t>(end),
        [&](size_t position) {
          const uint64_t address = address_of(position);
          return PlacedTensor{
              checkpoint_->tensor(slot(position).tensor_index),
              may_be_tied(position, address) ? address : 0};
        },
        [&](size_t position) {
          return may_be_tied(position, address_of(position))
                     ? std::nullopt
                     : checkpoint_->elements(slot(position).tensor_index);
        });
  });
}

c10::intrusive_ptr<SlotList> SlotList::matching(
    const std::vector<std::string>& patterns) const {
  return with_torch_errors([&] {
    return c10::make_intrusive<SlotList>(
        checkpoint_,
        format::matching_slots(checkpoint_->index(), slots_, patterns));
  });
}

c10::intrusive_ptr<SlotList> SlotList::at(const at::Tensor& positions) const {
  TORCH_CHECK_VALUE(
      positions.is_cpu(),
      "positions are on ",
      positions.device(),
      ", expected the CPU");
  const at::Tensor given = positions.contiguous();
  const auto* const numbers = given.const_data_ptr<int64_t>();
  std::vector<uint32_t> slots;
  slots.reserve(static_cast<size_t>(given.numel()));
  for (int64_t i = 0; i < given.numel(); ++i) {
    check_range(numbers[i], numbers[i] + 1);
    slots.push_back(slots_[static_cast<size_t>(numbers[i])]);
  }
  return c10::make_intrusive<SlotList>(checkpoint_, std::move(slots));
}

c10::intrusive_ptr<WindowHandle> SlotList::windows(
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype,
    bool drop_page_cache,
    const OptionalBudget& budget) const {
  const stream::Bounds bounds =
      checked_bounds(memory_limit_bytes, drop_page_cache, budget);
  return with_torch_errors([&] {
    const Conversion conversion(dtype);
    bool makes_large_results = false;
    std::vector<ByteRange> spans;
    spans.reserve(slots_.size());
    for (size_t i = 0; i < slots_.size(); ++i) {
      const uint32_t tensor_index = slot(i).tensor_index;
      spans.push_back(checkpoint_->span(tensor_index));
      const format::DType source = index().tensors[tensor_index].dtype;
      makes_large_results =
          makes_large_results ||
          (conversion.changes(scalar_type_of(source)) &&
           is_large(
               static_cast<int64_t>(
                   spans.back().size_bytes() / format::item_size_bytes(source)),
               *dtype));
    }
    return c10::make_intrusive<WindowHandle>(
        bounds,
        checkpoint_,
        std::move(spans),
        dtype,
        makes_large_results);
  });
}

}  // namespace ckpt_streamer::ops
