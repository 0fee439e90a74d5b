// torch.classes.ckpt_streamer._Checkpoint: the values of an open checkpoint,
// for eager Python, which makes a tree of them on demand.
//
// Private to the Python package. All methods may be called from several
// threads; each call is atomic. Nodes are those of format::ValueTree;
// c10::IndexError for one that is not of the tree.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "format/slot_finder.h"
#include "ops/checkpoint_tensors.h"
#include "ops/slot_list.h"
#include "ops/window_handle.h"

namespace ckpt_streamer::ops {

class CheckpointHandle final : public torch::CustomClassHolder {
 public:
  CheckpointHandle(
      std::shared_ptr<const CheckpointTensors> checkpoint,
      const stream::Bounds& bounds,
      std::optional<at::ScalarType> dtype);

  // The files, in the order of the stream.
  std::vector<std::string> paths() const;

  // (name, text) of what the files keep beside their tensors, those of an index
  // of shards first. Names may repeat.
  std::vector<std::tuple<std::string, std::string>> texts() const;

  // Bytes of all storages, shared ones once.
  int64_t storage_bytes() const;

  int64_t root() const {
    return static_cast<int64_t>(index().values.root());
  }

  // One value for each node: a tensor, or as value_of() gives it. Tensors are
  // admitted to the limit of look-ups; where it does not take all of them at
  // once, the values are those of the first nodes only, at least one.
  c10::IValue values(const std::vector<int64_t>& nodes);

  // int64 [n]: the nodes of a tuple's, list's, set's or object's items, or of a
  // dict's values.
  at::Tensor items(int64_t node) const;

  // int64 [n]: the nodes of the values behind an object's keys.
  at::Tensor entry_values(int64_t node) const;

  // Of dicts, lists, tuples and sets, many at once: int64 [nodes], how many
  // entries each has; int64 [n], the nodes of all their values, one after the
  // other; int64 [n], the nodes of their keys, -1 for what has none.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> children(
      const std::vector<int64_t>& nodes) const;

  // int64 [nodes]: 1 for a list, 2 for a dict, 3 for a tensor, 0 for any other
  // value.
  at::Tensor kinds(const std::vector<int64_t>& nodes) const;

  // A dict's or object's keys: as TextLot::take() if there are some and all are
  // strings, else int64 [n], their nodes.
  c10::IValue keys(int64_t node) const;

  // The nodes of a dict's, tensor's or object's callable, args, keyword args
  // and state, -1 for those that it has not, and the file offset of the opcode
  // that made it.
  std::vector<int64_t> parts(int64_t node) const;

  // The tensor of a dotted name, admitted to the limit of look-ups, in the
  // dtype of the constructor if there is one (see Conversion); None without
  // such a tensor. THROWS: c10::ValueError for several of that name.
  std::optional<at::Tensor> tensor(const std::string& name);

  // tensor(name)[begin:end], of which only that part is read; None without such
  // a tensor.
  // THROWS: as tensor(); c10::IndexError unless 0 <= begin <= end <= the size
  // of the tensor's first dimension; c10::ValueError for a tensor without one.
  std::optional<at::Tensor> slice(
      const std::string& name,
      int64_t begin,
      int64_t end);

  // (names as TextLot::take(), nodes): all values but tensors and what holds
  // some, each where it is first found. None for no such values.
  // THROWS: c10::ValueError for names of more than 64 MiB in all.
  c10::IValue leaves() const;

  // All tensors, in the order of the stream.
  c10::intrusive_ptr<SlotList> slots() const;

  // Those that the containers and objects reachable from a node hold.
  c10::intrusive_ptr<SlotList> slots_under(int64_t node) const;

  // The engine that keeps the tensors of values() within the limit.
  c10::intrusive_ptr<WindowHandle> lookups();

 private:
  [[nodiscard]] const format::CheckpointIndex& index() const noexcept {
    return checkpoint_->index();
  }
  [[nodiscard]] format::NodeId checked(int64_t node) const;
  [[nodiscard]] const format::SlotFinder& finder();
  // The part of a named tensor, if there is one of that name.
  std::optional<at::Tensor> read(
      const std::string& name,
      const std::function<PlacedTensor(const PlacedTensor&)>& part_of);
  // The index of the tensor of a name, if there is one.
  std::optional<uint32_t> find_tensor(const std::string& name);

  const std::shared_ptr<const CheckpointTensors> checkpoint_;
  const stream::Bounds bounds_;
  const std::optional<at::ScalarType> dtype_;
  std::mutex mutex_;
  // Made by the first look-up that needs them.
  c10::intrusive_ptr<WindowHandle> lookups_;
  std::optional<format::SlotFinder> finder_;
};

// torch.ops.ckpt_streamer._open(str[] paths, bool is_list, int
// memory_limit_bytes, ScalarType? dtype, bool verify, bool drop_page_cache,
// MemoryBudget? budget):
// one path, or a list that makes one stream. THROWS: c10::ValueError for a
// dtype that Conversion refuses, torch's errors (see errors.h) for what cannot
// be read.
c10::intrusive_ptr<CheckpointHandle> open_checkpoint(
    const std::vector<std::string>& paths,
    bool is_list,
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype,
    bool verifies,
    bool drop_page_cache,
    const OptionalBudget& budget);

}  // namespace ckpt_streamer::ops
