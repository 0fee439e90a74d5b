// From a pickle to an index with a tree of all its values.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "format/checkpoint_index.h"
#include "format/pickle_context.h"
#include "format/tensor_rebuild.h"

namespace ckpt_streamer::format {

// Walks every value that is reachable from the pickle's root, each once, and
// makes it a node of index.values; what holds a tensor becomes a slot. Keeps a
// stack of its own, so that depth costs no stack.
class ValueWalk final : private ArraySource {
 public:
  // REQUIRES: all outlive this; index.values is empty.
  ValueWalk(
      PickleContext& context,
      StorageLookup& lookup,
      CheckpointIndex& index);

  void run();

 private:
  static constexpr uint32_t kNoFrame = 0xFFFFFFFF;

  // What of a container or object a frame goes through.
  enum class Part : uint8_t {
    kEntries,  // key, value, key, value
    kItems,    // named by position
    kUnnamed,  // as kItems, without a part of the name for each
    kCallable,
    kArgs,
    kKeywordArgs,
    kState,
  };
  struct Frame {
    Part part;
    NodeId node;                           // whose part it is
    ValueId value = kNoValue;              // of the parts that are one value
    std::span<const ValueId> values = {};  // of the others
    ValueTree::Run run = {};               // where those go
    uint32_t next = 0;
    uint32_t parent = kNoFrame;  // the frame whose value `node` is
    NodeId key = kNoNode;  // the part of the name behind the parent's, if any
    bool has_name =
        false;  // whether any part of the name comes before its values'
    bool has_prefix = false;
    uint32_t prefix = kNoPrefix;
    size_t name_bytes = 0;  // of the node's own path
  };
  // Where the value that is visited stands.
  struct Place {
    uint32_t frame = kNoFrame;
    NodeId container = kNoNode;
    NodeId key = kNoNode;
    bool is_key = false;  // the value is a key itself
  };
  void step();
  void step_entry(uint32_t frame_index);
  void step_item(uint32_t frame_index);
  void step_part(uint32_t frame_index);
  NodeId position_node(size_t position);

  NodeId node_of(ValueId id, const Place& place);
  [[nodiscard]] ValueId stand_in(ValueId id) const;
  NodeId make_node(ValueId id, const Place& place);
  NodeId make_container(
      NodeKind kind,
      Part part,
      std::span<const ValueId> values,
      const Place& place);
  [[nodiscard]] bool is_slots_state(ValueId id, const Place& place) const;
  NodeId global_node(std::string text);
  [[nodiscard]] PickleObject as_new_object(PickleObject object) const;
  NodeId make_object(ValueId id, const Place& place);
  NodeId make_tensor(ValueId id, const Place& place);
  NodeId make_from_type(const PickleObject& object, const Place& place);
  NodeId make_array(const PickleObject& object);
  NodeId array_of(ValueId id) override;
  NodeId make_known(ValueId id, GlobalRole role, const Place& place);
  std::optional<ValueTree::Text> bytes_of(ValueId id);
  NodeId make_opaque(
      const PickleObject& object,
      GlobalRole role,
      ValueId type,
      const Place& place);
  std::optional<std::span<const ValueId>> entries_given(ValueId id);

  void push(Frame frame, const Place& place);
  void add_slot(NodeId node, const Place& place);
  uint32_t prefix_of(uint32_t frame_index);

  PickleContext& context_;
  const PickleTree& tree_;
  CheckpointIndex& index_;
  ValueTree& values_;
  TensorRebuilder tensors_;

  std::deque<Frame> frames_;               // hostile files make millions
  std::vector<NodeId> node_of_value_;      // by ValueId; kNoNode: not yet
  std::vector<NodeId> position_nodes_;     // ints, by their value
  std::vector<uint32_t> unmade_prefixes_;  // of prefix_of(), for its memory
  std::unordered_map<std::string, NodeId> global_nodes_;
  std::unordered_map<std::string, NodeId> numpy_dtypes_;  // strings
  // By the value that was given: what is shared is made and walked once.
  std::unordered_map<ValueId, std::optional<ValueTree::Text>> latin1_texts_;
  std::unordered_map<ValueId, std::vector<ValueId>> given_pairs_;
  std::unordered_map<ValueId, ValueTree::Run> given_runs_;
};

}  // namespace ckpt_streamer::format
