#include "format/flat_walk.h"

#include <string>

#include "format/pickle_text.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

// Containers that are walked under each of their paths could unfold without
// end. Modules that share modules reach a few values more than there are.
constexpr uint64_t kVisitsForValue = 64;

// Only these can hold a tensor, or be one.
bool may_hold_tensors(ValueKind kind) noexcept {
  return kind >= ValueKind::kTuple;
}

}  // namespace

FlatWalk::FlatWalk(
    PickleContext& context,
    StorageLookup& lookup,
    CheckpointIndex& index)
    : context_(context),
      tree_(context.tree()),
      index_(index),
      tensors_(context, lookup, nullptr, index),
      tensor_of_object_(tree_.object_count(), kNoTensor),
      is_open_(tree_.size()),
      visit_budget_(kVisitsForValue * tree_.size()) {}

void FlatWalk::run() {
  visit(tree_.root());
  while (!frames_.empty()) {
    Frame& frame = frames_.back();
    context_.cut_path(frame.name_bytes);
    if (frame.next == frame.values.size()) {
      is_open_[frame.container] = false;
      frames_.pop_back();
      continue;
    }
    const bool is_first = frame.name_bytes == 0 && frames_.size() == 1;
    const size_t position = frame.next;
    frame.next += frame.is_mapping ? 2 : 1;
    const ValueId value =
        frame.values[frame.is_mapping ? position + 1 : position];
    if (!may_hold_tensors(tree_.kind(value))) {
      continue;
    }
    if (frame.is_mapping) {
      append_key(frame.values[position], is_first);
    } else {
      context_.append_part(std::to_string(position), is_first);
    }
    visit(value);
  }
}

void FlatWalk::append_key(ValueId key, bool is_first) {
  context_.check_key(key);
  if (tree_.kind(key) == ValueKind::kString) {
    context_.append_part(tree_.text(key), is_first);
  } else {
    context_.append_part(key_text(tree_, key), is_first);
  }
}

// Objects of TorchScript are their states, and calls that only tag a list or
// dict with its type are what they tag. A state may lead back to its object,
// which the visits bound.
ValueId FlatWalk::stand_in(ValueId id) {
  while (tree_.kind(id) == ValueKind::kObject) {
    const PickleObject object = tree_.object(id);
    const GlobalRole role = context_.meaning(object.callable).role;
    const auto args = tree_.items(object.args);
    ValueId next = kNoValue;
    if (role == GlobalRole::kScriptClass) {
      next = object.state;
    } else if (role == GlobalRole::kFirstArgument) {
      next = args.empty() ? kNoValue : args.front();
    } else {
      return id;
    }
    if (next == kNoValue) {
      return kNoValue;
    }
    charge_visits(1);
    id = next;
  }
  return id;
}

// May push a frame, which invalidates references to others.
void FlatWalk::visit(ValueId id) {
  id = stand_in(id);
  if (id == kNoValue) {
    return;
  }
  switch (tree_.kind(id)) {
    case ValueKind::kTuple:
    case ValueKind::kList:
      return push_container(id, tree_.items(id), false);
    case ValueKind::kDict:
      return push_container(id, tree_.entries(id), true);
    case ValueKind::kObject:
      break;
    default:
      return;
  }
  if (tensors_.is_tensor(id)) {
    uint32_t& tensor = tensor_of_object_[tree_.object_index(id)];
    if (tensor == kNoTensor) {
      tensor = tensors_.rebuild(id).tensor_index;
    }
    context_.charge_name(context_.path().size());
    index_.add_named_slot(context_.path(), tensor);
  }
}

void FlatWalk::push_container(
    ValueId id,
    std::span<const ValueId> values,
    bool is_mapping) {
  if (values.empty() || is_open_[id]) {
    return;
  }
  is_open_[id] = true;
  charge_visits(values.size());
  if (is_mapping) {
    context_.check_distinct_keys(values);
  }
  frames_.push_back({values, is_mapping, 0, context_.path().size(), id});
}

void FlatWalk::charge_visits(uint64_t value_count) {
  visit_count_ += value_count;
  if (visit_count_ > visit_budget_) {
    context_.fail(
        ErrorKind::kUnsupported,
        "the shared containers unfold to more than " +
            std::to_string(visit_budget_) + " values, expected at most " +
            std::to_string(kVisitsForValue) + " for each of the " +
            std::to_string(tree_.size()),
        context_.origin().file_offset);
  }
}

}  // namespace ckpt_streamer::format
