#include "format/value_walk.h"

#include <array>
#include <string_view>
#include <utility>

#include "format/numpy_values.h"
#include "format/pickle_text.h"
#include "format/text.h"
#include "format/value_text.h"

namespace ckpt_streamer::format {
namespace {

// Only these can hold a tensor, or be one.
bool may_hold_tensors(ValueKind kind) noexcept {
  return kind >= ValueKind::kTuple && kind != ValueKind::kGlobal;
}

}  // namespace

ValueWalk::ValueWalk(
    PickleContext& context,
    StorageLookup& lookup,
    CheckpointIndex& index)
    : context_(context),
      tree_(context.tree()),
      index_(index),
      values_(index.values),
      tensors_(context, lookup, this, index),
      node_of_value_(tree_.size(), kNoNode) {}

void ValueWalk::run() {
  values_.set_root(node_of(tree_.root(), {}));
  while (!frames_.empty()) {
    step();
  }
}

// Ends the topmost frame or goes on with its next value, which may push frames.
void ValueWalk::step() {
  const auto frame_index = static_cast<uint32_t>(frames_.size() - 1);
  const Frame& frame = frames_.back();
  const bool is_one_value = frame.part > Part::kUnnamed;
  if (frame.next == (is_one_value ? 1 : frame.values.size())) {
    return frames_.pop_back();
  }
  context_.cut_path(frame.name_bytes);
  if (is_one_value) {
    step_part(frame_index);
  } else if (frame.part == Part::kEntries) {
    step_entry(frame_index);
  } else {
    step_item(frame_index);
  }
}

void ValueWalk::step_entry(uint32_t frame_index) {
  Frame& frame = frames_[frame_index];
  const size_t position = frame.next++;
  const ValueTree::Run run = frame.run;
  const ValueId id = frame.values[position];
  Place place{frame_index, frame.node};
  place.is_key = position % 2 == 0;
  if (!place.is_key) {
    place.key = values_.value(run, position - 1);
  }
  if (may_hold_tensors(tree_.kind(id))) {
    const bool is_first = !frame.has_name;
    if (place.is_key) {
      context_.append_part(element_text(tree_, id), is_first);
    } else if (values_.kind(place.key) == NodeKind::kString) {
      context_.append_part(values_.text(place.key), is_first);
    } else {
      context_.check_key(frame.values[position - 1]);
      context_.append_part(key_text(values_, place.key), is_first);
    }
  }
  const NodeId node = node_of(id, place);
  values_.set_value(run, position, node);
}

void ValueWalk::step_item(uint32_t frame_index) {
  Frame& frame = frames_[frame_index];
  const size_t position = frame.next++;
  const ValueTree::Run run = frame.run;
  const ValueId id = frame.values[position];
  Place place{frame_index, frame.node};
  if (may_hold_tensors(tree_.kind(id)) && frame.part == Part::kItems) {
    context_.append_part(std::to_string(position), !frame.has_name);
    place.key = position_node(position);
  }
  const NodeId node = node_of(id, place);
  values_.set_value(run, position, node);
}

void ValueWalk::step_part(uint32_t frame_index) {
  Frame& frame = frames_[frame_index];
  ++frame.next;
  const Part part = frame.part;
  const NodeId owner = frame.node;
  const NodeId node = node_of(frame.value, {frame_index, owner});
  ValueTree::ObjectParts& parts = values_.object_parts(owner);
  switch (part) {
    case Part::kCallable:
      parts.callable = node;
      return;
    case Part::kArgs:
      parts.args = node;
      return;
    case Part::kKeywordArgs:
      parts.keyword_args = node;
      return;
    default:
      parts.state = node;
  }
}

NodeId ValueWalk::position_node(size_t position) {
  if (position >= position_nodes_.size()) {
    position_nodes_.resize(position + 1, kNoNode);
  }
  NodeId& node = position_nodes_[position];
  if (node == kNoNode) {
    node = values_.add_int(static_cast<int64_t>(position));
  }
  return node;
}

NodeId ValueWalk::node_of(ValueId id, const Place& place) {
  NodeId node = node_of_value_[id];
  if (node == kNoNode) {
    if (const ValueId other = stand_in(id); other != id) {
      node = node_of(other, place);
      node_of_value_[id] = node;
      return node;
    }
    node = make_node(id, place);
    node_of_value_[id] = node;
  }
  if (values_.kind(node) == NodeKind::kTensor) {
    add_slot(node, place);
  }
  return node;
}

// Calls that return what they are given: torch.Size((2, 3)), and what only tags
// a list or dict of TorchScript with its type. One level: no such call is
// around another. And torch.save's persistent ids of the classes of modules,
// ("module", class, source file, source).
ValueId ValueWalk::stand_in(ValueId id) const {
  if (tree_.kind(id) == ValueKind::kPersistent) {
    const ValueId pid = tree_.persistent_id(id);
    if (tree_.kind(pid) == ValueKind::kTuple) {
      const auto parts = tree_.items(pid);
      if (parts.size() == 4 && tree_.kind(parts[0]) == ValueKind::kString &&
          tree_.text(parts[0]) == "module" &&
          tree_.kind(parts[1]) == ValueKind::kGlobal) {
        return parts[1];
      }
    }
    return id;
  }
  const auto role_of = [this](ValueId object) {
    return tree_.kind(object) == ValueKind::kObject
               ? context_.meaning(tree_.object(object).callable).role
               : GlobalRole::kOther;
  };
  const GlobalRole role = role_of(id);
  if (role != GlobalRole::kFirstArgument && role != GlobalRole::kTorchSize) {
    return id;
  }
  const auto args = tree_.items(tree_.object(id).args);
  const bool is_known =
      role == GlobalRole::kTorchSize
          ? args.size() == 1 && tree_.kind(args[0]) == ValueKind::kTuple
          : !args.empty() && role_of(args[0]) != GlobalRole::kFirstArgument &&
                role_of(args[0]) != GlobalRole::kTorchSize;
  return is_known ? args[0] : id;
}

// A container's own values come later, from the frames pushed here; so may the
// container itself among them, whose node is known by then.
NodeId ValueWalk::make_node(ValueId id, const Place& place) {
  switch (tree_.kind(id)) {
    case ValueKind::kNone:
      return values_.add_none();
    case ValueKind::kBool:
      return values_.add_bool(tree_.bool_value(id));
    case ValueKind::kInt:
      return values_.add_int(tree_.int_value(id));
    case ValueKind::kBigInt:
      return values_.add_text_node(NodeKind::kBigInt, tree_.text(id));
    case ValueKind::kFloat:
      return values_.add_float(tree_.float_value(id));
    case ValueKind::kString: {
      const std::string_view text = tree_.text(id);
      return values_.add_text_node(
          is_valid_utf8(text) ? NodeKind::kString : NodeKind::kBytes,
          text);
    }
    case ValueKind::kBytes:
      return values_.add_text_node(NodeKind::kBytes, tree_.text(id));
    case ValueKind::kTuple:
      return make_container(
          NodeKind::kTuple,
          is_slots_state(id, place) ? Part::kUnnamed : Part::kItems,
          tree_.items(id),
          place);
    case ValueKind::kList:
      return make_container(
          NodeKind::kList,
          Part::kItems,
          tree_.items(id),
          place);
    case ValueKind::kSet:
      return make_container(
          NodeKind::kSet,
          Part::kItems,
          tree_.items(id),
          place);
    case ValueKind::kDict:
      return make_container(
          NodeKind::kDict,
          Part::kEntries,
          tree_.entries(id),
          place);
    case ValueKind::kGlobal:
      return global_node(global_text(tree_, id));
    case ValueKind::kObject:
      return make_object(id, place);
    case ValueKind::kPersistent:
      return values_.add_tensor(tensors_.rebuild_storage(id));
  }
  return kNoNode;
}

NodeId ValueWalk::make_container(
    NodeKind kind,
    Part part,
    std::span<const ValueId> values,
    const Place& place) {
  if (part == Part::kEntries) {
    context_.check_distinct_keys(values);
  }
  const ValueTree::Run run = values_.add_run(values.size());
  const NodeId node = values_.add_container(kind, run);
  push({.part = part, .node = node, .values = values, .run = run}, place);
  return node;
}

// copyreg.py: the state of a class with __slots__ is (__dict__ or None, slots),
// and both are its attributes.
bool ValueWalk::is_slots_state(ValueId id, const Place& place) const {
  if (place.frame == kNoFrame || frames_[place.frame].part != Part::kState) {
    return false;
  }
  const auto items = tree_.items(id);
  return items.size() == 2 && tree_.kind(items[1]) == ValueKind::kDict &&
         (tree_.kind(items[0]) == ValueKind::kNone ||
          tree_.kind(items[0]) == ValueKind::kDict);
}

NodeId ValueWalk::global_node(std::string text) {
  const auto [entry, is_new] =
      global_nodes_.try_emplace(std::move(text), kNoNode);
  if (is_new) {
    context_.charge_name(entry->first.size());
    entry->second = values_.add_text_node(NodeKind::kGlobal, entry->first);
  }
  return entry->second;
}

// copyreg.py: in protocols 0 and 1, an instance of a class derived from tuple
// is _reconstructor(class, tuple, items), which later protocols pickle as
// class.__new__(class, *items).
PickleObject ValueWalk::as_new_object(PickleObject object) const {
  const auto args = tree_.items(object.args);
  if (context_.meaning(object.callable).role == GlobalRole::kReconstructor &&
      args.size() == 3 && tree_.kind(args[0]) == ValueKind::kGlobal &&
      context_.meaning(args[1]).role == GlobalRole::kTupleClass &&
      tree_.kind(args[2]) == ValueKind::kTuple) {
    object.callable = args[0];
    object.args = args[2];
  }
  return object;
}

NodeId ValueWalk::make_object(ValueId id, const Place& place) {
  if (tensors_.is_tensor(id)) {
    return make_tensor(id, place);
  }
  PickleObject object = as_new_object(tree_.object(id));
  object.callable = stand_in(object.callable);
  const GlobalRole role = context_.meaning(object.callable).role;
  if (const NodeId array = make_array(object); array != kNoNode) {
    return array;
  }
  const bool is_bare = object.state == kNoValue &&
                       object.keyword_args == kNoValue &&
                       object.entries.empty();
  NodeId node = is_bare ? make_known(id, role, place) : kNoNode;
  if (is_bare && node == kNoNode && role == GlobalRole::kRebuildFromType) {
    node = make_from_type(object, place);
  }
  return node != kNoNode ? node : make_opaque(object, role, kNoValue, place);
}

// A tensor, and the attributes that are pickled onto it: those of torch's own
// rebuild, those of the data inside a parameter, and a state of BUILD. More
// than one of them is for hostile files, but must not hide a tensor.
NodeId ValueWalk::make_tensor(ValueId id, const Place& place) {
  const RebuiltTensor tensor = tensors_.rebuild(id);
  const PickleObject object = tree_.object(id);
  std::vector<ValueId> states;
  for (const ValueId state : {tensor.state, tensor.data_state, object.state}) {
    const bool is_empty =
        state == kNoValue || tree_.kind(state) == ValueKind::kNone ||
        (tree_.kind(state) == ValueKind::kDict && tree_.entries(state).empty());
    if (!is_empty) {
      states.push_back(state);
    }
  }
  if (tensor.type == kNoValue && states.empty()) {
    return values_.add_tensor(tensor.tensor_index);
  }
  ValueTree::ObjectParts parts;
  parts.file_offset = context_.in_file(object.pickle_offset);
  parts.type = tensor.type != kNoValue ? node_of(tensor.type, {})
                                       : global_node("torch.Tensor");
  const NodeId node = values_.add_tensor(tensor.tensor_index, parts);
  constexpr std::array<Part, 3> kParts{
      Part::kState,
      Part::kArgs,
      Part::kKeywordArgs};
  for (size_t i = states.size(); i-- > 0;) {
    push({.part = kParts[i], .node = node, .value = states[i]}, place);
  }
  return node;
}

// A subclass without data of its own: _rebuild_from_type_v2(func, type, args,
// state) makes func(*args), of that type.
NodeId ValueWalk::make_from_type(
    const PickleObject& object,
    const Place& place) {
  const auto args = tree_.items(object.args);
  if (args.size() != 4 || tree_.kind(args[1]) != ValueKind::kGlobal ||
      tree_.kind(args[2]) != ValueKind::kTuple) {
    return kNoNode;
  }
  PickleObject inner = object;
  inner.callable = args[0];
  inner.args = args[2];
  inner.state = args[3];
  return make_opaque(inner, GlobalRole::kOther, args[1], place);
}

NodeId ValueWalk::make_array(const PickleObject& object) {
  const auto value = read_numpy(context_, object);
  if (!value.has_value()) {
    return kNoNode;
  }
  const auto bytes = bytes_of(value->bytes);
  if (!bytes.has_value() || bytes->size_bytes != value->size_bytes) {
    return kNoNode;
  }
  ValueTree::ArrayParts parts;
  const auto [dtype, is_new] = numpy_dtypes_.try_emplace(value->dtype, kNoNode);
  if (is_new) {
    dtype->second = values_.add_text_node(NodeKind::kString, value->dtype);
  }
  parts.dtype = dtype->second;
  parts.sizes = values_.add_run(value->sizes.size());
  for (size_t i = 0; i < value->sizes.size(); ++i) {
    const NodeId size = node_of(value->sizes[i], {});
    values_.set_value(parts.sizes, i, size);
  }
  parts.is_scalar = value->is_scalar;
  parts.is_fortran_order = value->is_fortran_order;
  parts.bytes = *bytes;
  return values_.add_array(parts);
}

NodeId ValueWalk::array_of(ValueId id) {
  NodeId& node = node_of_value_[id];
  if (node == kNoNode && tree_.kind(id) == ValueKind::kObject) {
    node = make_array(tree_.object(id));
  }
  return node != kNoNode && values_.kind(node) == NodeKind::kArray ? node
                                                                   : kNoNode;
}

// What a call of Python's own types makes; kNoNode when it is called in a way
// that they are not pickled.
NodeId ValueWalk::make_known(ValueId id, GlobalRole role, const Place& place) {
  const PickleObject object = tree_.object(id);
  const auto args = tree_.items(object.args);
  const auto is_sequence = [&](size_t position) {
    return args.size() > position &&
           (tree_.kind(args[position]) == ValueKind::kList ||
            tree_.kind(args[position]) == ValueKind::kTuple);
  };
  switch (role) {
    case GlobalRole::kSet:
      if (args.size() == 1 && is_sequence(0) && object.items.empty()) {
        const NodeId list = node_of(args[0], place);
        return values_.add_container(NodeKind::kSet, values_.run_of(list));
      }
      return kNoNode;
    case GlobalRole::kDeque:
      // Items are appended; the arguments are nothing, or () and maxlen.
      if (args.empty() || (is_sequence(0) && tree_.items(args[0]).empty())) {
        return make_container(
            NodeKind::kList,
            Part::kItems,
            object.items,
            place);
      }
      if (is_sequence(0) && object.items.empty()) {
        const NodeId list = node_of(args[0], place);
        return values_.add_container(NodeKind::kList, values_.run_of(list));
      }
      return kNoNode;
    case GlobalRole::kComplex: {
      if (args.size() != 2 || tree_.kind(args[0]) != ValueKind::kFloat ||
          tree_.kind(args[1]) != ValueKind::kFloat) {
        return kNoNode;
      }
      const ValueTree::Run run = values_.add_run(2);
      for (size_t i = 0; i < 2; ++i) {
        const NodeId part = node_of(args[i], {});
        values_.set_value(run, i, part);
      }
      return values_.add_container(NodeKind::kComplex, run);
    }
    case GlobalRole::kBytes:
    case GlobalRole::kEncode:
      if (const auto text = bytes_of(id)) {
        return values_.add_text_node(NodeKind::kBytes, *text);
      }
      return kNoNode;
    default:
      return kNoNode;
  }
}

// Bytes, and what stands for them: in protocols 0 to 2,
// _codecs.encode(text, 'latin1') and Python 2's strings; bytearray(b'...') and
// bytes(). Shared texts stay shared, however often they are used.
std::optional<ValueTree::Text> ValueWalk::bytes_of(ValueId id) {
  if (tree_.kind(id) == ValueKind::kBytes ||
      tree_.kind(id) == ValueKind::kString) {
    return values_.text_of(node_of(id, {}));
  }
  if (tree_.kind(id) != ValueKind::kObject) {
    return std::nullopt;
  }
  const PickleObject object = tree_.object(id);
  const GlobalRole role = context_.meaning(object.callable).role;
  if (role != GlobalRole::kBytes && role != GlobalRole::kEncode) {
    return std::nullopt;
  }
  const auto args = tree_.items(object.args);
  if (args.empty() && role == GlobalRole::kBytes) {
    return ValueTree::Text{};
  }
  if (args.size() == 1 && tree_.kind(args[0]) == ValueKind::kBytes) {
    return values_.text_of(node_of(args[0], {}));
  }
  if (args.size() != 2 || tree_.kind(args[0]) != ValueKind::kString ||
      tree_.kind(args[1]) != ValueKind::kString) {
    return std::nullopt;
  }
  const std::string_view encoding = tree_.text(args[1]);
  if (encoding != "latin1" && encoding != "latin-1") {
    return std::nullopt;
  }
  const auto [entry, is_new] = latin1_texts_.try_emplace(args[0]);
  if (is_new) {
    const auto bytes = latin1_bytes(tree_.text(args[0]));
    if (bytes.has_value()) {
      entry->second = values_.add_text(*bytes);
    }
  }
  return entry->second;
}

// Anything that would be made by a call: what would be called with what, and
// everything in it.
NodeId ValueWalk::make_opaque(
    const PickleObject& object,
    GlobalRole role,
    ValueId type,
    const Place& place) {
  const auto args = tree_.items(object.args);
  const bool is_dict = role == GlobalRole::kOrderedDict ||
                       role == GlobalRole::kDefaultDict ||
                       role == GlobalRole::kCounter ||
                       (!object.entries.empty() && object.items.empty());
  ValueTree::ObjectParts parts;
  parts.file_offset = context_.in_file(object.pickle_offset);
  if (tree_.kind(object.callable) == ValueKind::kGlobal) {
    parts.callable = node_of(object.callable, {});
    parts.type = parts.callable;
    // copyreg.py: these make an instance of their first argument.
    if (role == GlobalRole::kReconstructor && !args.empty() &&
        tree_.kind(args[0]) == ValueKind::kGlobal) {
      parts.type = node_of(args[0], {});
    }
  }
  if (type != kNoValue) {
    parts.type = node_of(type, {});
  }
  std::span<const ValueId> entries = object.entries;
  bool has_args = !args.empty();
  bool is_shared = false;
  if (is_dict && entries.empty() && args.size() == 1) {
    if (const auto given = entries_given(args[0]); given.has_value()) {
      has_args = false;
      const auto [run, is_new] = given_runs_.try_emplace(args[0]);
      if (is_new) {
        run->second = values_.add_run(given->size());
      }
      parts.entries = run->second;
      entries = *given;
      is_shared = !is_new;
    }
  }
  if (parts.entries.count == 0) {
    parts.entries = values_.add_run(entries.size());
  }
  parts.items = values_.add_run(object.items.size());
  if (!is_shared) {
    context_.check_distinct_keys(entries);
  }
  const NodeId node =
      values_.add_object(is_dict ? NodeKind::kDict : NodeKind::kObject, parts);
  // The last one pushed is walked first.
  const auto push_value = [&](Part part, ValueId value) {
    if (value != kNoValue) {
      push({.part = part, .node = node, .value = value}, place);
    }
  };
  push_value(Part::kState, object.state);
  if (!is_shared) {
    push(
        {.part = Part::kEntries,
         .node = node,
         .values = entries,
         .run = parts.entries},
        place);
  }
  push(
      {.part = Part::kItems,
       .node = node,
       .values = object.items,
       .run = parts.items},
      place);
  push_value(Part::kKeywordArgs, object.keyword_args);
  push_value(Part::kArgs, has_args ? object.args : kNoValue);
  push_value(
      Part::kCallable,
      parts.callable == kNoNode ? object.callable : kNoValue);
  return node;
}

// Python 2 made an OrderedDict from a list of pairs, and a Counter is made from
// a dict.
std::optional<std::span<const ValueId>> ValueWalk::entries_given(ValueId id) {
  if (tree_.kind(id) == ValueKind::kDict) {
    return tree_.entries(id);
  }
  if (tree_.kind(id) != ValueKind::kList) {
    return std::nullopt;
  }
  if (const auto found = given_pairs_.find(id); found != given_pairs_.end()) {
    return found->second;
  }
  std::vector<ValueId> entries;
  for (const ValueId pair : tree_.items(id)) {
    const ValueKind kind = tree_.kind(pair);
    if ((kind != ValueKind::kList && kind != ValueKind::kTuple) ||
        tree_.items(pair).size() != 2) {
      return std::nullopt;
    }
    entries.push_back(tree_.items(pair)[0]);
    entries.push_back(tree_.items(pair)[1]);
  }
  return given_pairs_.emplace(id, std::move(entries)).first->second;
}

void ValueWalk::push(Frame frame, const Place& place) {
  if (frame.part <= Part::kUnnamed && frame.values.empty()) {
    return;
  }
  frame.parent = place.frame;
  frame.key = place.is_key ? frame.node : place.key;
  frame.has_name = frame.key != kNoNode ||
                   (place.frame != kNoFrame && frames_[place.frame].has_name);
  frame.name_bytes = context_.path().size();
  frames_.push_back(frame);
}

void ValueWalk::add_slot(NodeId node, const Place& place) {
  context_.charge_name(context_.path().size());
  Slot slot;
  slot.tensor_index = values_.tensor_index(node);
  slot.prefix = place.frame == kNoFrame ? kNoPrefix : prefix_of(place.frame);
  if (place.is_key) {
    index_.prefixes.push_back({slot.prefix, node});
    slot.prefix = static_cast<uint32_t>(index_.prefixes.size() - 1);
  } else {
    slot.container = place.container;
    slot.key = place.key;
  }
  index_.slots.push_back(slot);
}

// Made for the frames that hold tensors, not for each.
uint32_t ValueWalk::prefix_of(uint32_t frame_index) {
  std::vector<uint32_t>& unmade = unmade_prefixes_;
  unmade.clear();
  uint32_t prefix = kNoPrefix;
  for (uint32_t i = frame_index; i != kNoFrame; i = frames_[i].parent) {
    if (frames_[i].has_prefix) {
      prefix = frames_[i].prefix;
      break;
    }
    unmade.push_back(i);
  }
  for (size_t i = unmade.size(); i-- > 0;) {
    Frame& frame = frames_[unmade[i]];
    if (frame.key != kNoNode) {
      index_.prefixes.push_back({prefix, frame.key});
      prefix = static_cast<uint32_t>(index_.prefixes.size() - 1);
    }
    frame.prefix = prefix;
    frame.has_prefix = true;
  }
  return prefix;
}

}  // namespace ckpt_streamer::format
