// The values of a checkpoint as a person would name them: containers, numbers,
// texts, tensors and objects that were not made. What a reader builds beside
// the tensors, and all that is kept of a pickle once it has been read.
//
// Nodes are shared as the file shares them, so the "tree" may have shared
// branches and cycles; whoever walks it keeps track. Owns its texts: nothing of
// the file stays in memory for it. Safe to share between threads once built.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ckpt_streamer::format {

// A node of one tree. Equal ids are the same Python object.
using NodeId = uint32_t;

inline constexpr NodeId kNoNode = 0xFFFFFFFF;

enum class NodeKind : uint8_t {
  kNone,
  kBool,
  kInt,     // fits int64
  kBigInt,  // does not; its decimal or 0x... text
  kFloat,
  kComplex,  // items: two floats
  kString,
  kBytes,  // also bytearray, and strings that are not UTF-8
  kTuple,  // also torch.Size
  kList,   // also deque
  kDict,   // also OrderedDict, defaultdict, Counter, classes derived from dict
  kSet,    // also frozenset
  kTensor,
  kArray,   // a numpy array or scalar of a plain dtype
  kGlobal,  // a class or function, by its name; also torch.dtype and the like
  kObject,  // anything else that the file would have made by calling something
};

// What a dict, tensor or object has beside its items. Absent parts are kNoNode
// or empty.
struct ObjectNode {
  // "module.name"; "dict" for a plain dict, "torch.Tensor" for a plain tensor,
  // "<object>" where what would be called is no global.
  std::string_view type_name;
  NodeId callable = kNoNode;        // what would be called; mostly a global
  NodeId args = kNoNode;            // a tuple: what it would be called with
  NodeId keyword_args = kNoNode;    // a dict
  NodeId state = kNoNode;           // of __setstate__ or __dict__, as pickled
  std::span<const NodeId> items;    // of a class derived from list or set
  std::span<const NodeId> entries;  // key, value, key, value
  uint64_t file_offset = 0;         // of the opcode that made it; 0 without one
};

struct ArrayNode {
  std::string_view dtype;         // numpy's str: "<f8", "|b1", "<U5"
  std::span<const NodeId> sizes;  // ints; none for a scalar
  bool is_scalar = false;         // numpy.float64(3), not numpy.array(3)
  bool is_fortran_order = false;
  std::string_view bytes;  // little-endian unless dtype says ">"
};

class ValueTree {
 public:
  // kNoNode for a tree that nothing was added to.
  [[nodiscard]] NodeId root() const noexcept {
    return root_;
  }
  // Ids are [0, size()).
  [[nodiscard]] size_t size() const noexcept {
    return nodes_.size();
  }
  [[nodiscard]] NodeKind kind(NodeId id) const noexcept {
    return nodes_[id].kind;
  }

  // The accessors below REQUIRE: a node of the kind that they name. What they
  // return lives as long as the tree is not added to.

  [[nodiscard]] bool bool_value(NodeId id) const noexcept {
    return nodes_[id].second != 0;
  }
  [[nodiscard]] int64_t int_value(NodeId id) const noexcept {
    return static_cast<int64_t>(nodes_[id].second);
  }
  [[nodiscard]] double float_value(NodeId id) const noexcept;
  // Of a string (valid UTF-8), bytes, big int or global (valid UTF-8).
  [[nodiscard]] std::string_view text(NodeId id) const noexcept {
    return {texts_.data() + nodes_[id].second, nodes_[id].first};
  }
  // Of a tuple, list, set or complex.
  [[nodiscard]] std::span<const NodeId> items(NodeId id) const noexcept {
    return {pool_.data() + nodes_[id].second, nodes_[id].first};
  }
  // Of a dict: key, value, key, value, in the order of insertion. A key comes
  // once; but for several files as one dict, where names may repeat.
  [[nodiscard]] std::span<const NodeId> entries(NodeId id) const noexcept;
  // Of a dict (its entries included), a tensor or an object.
  [[nodiscard]] ObjectNode object(NodeId id) const noexcept;
  // Of a tensor: its position in CheckpointIndex::tensors.
  [[nodiscard]] uint32_t tensor_index(NodeId id) const noexcept {
    return nodes_[id].first;
  }
  [[nodiscard]] ArrayNode array(NodeId id) const noexcept;

  // Building. Values of a container, all kNoNode at first, are a run of slots
  // that several containers may share. Each adder returns the new node.

  struct Run {
    uint64_t begin = 0;
    uint32_t count = 0;
  };
  struct Text {
    uint64_t begin = 0;
    uint32_t size_bytes = 0;
  };
  struct ObjectParts {
    NodeId callable = kNoNode;
    NodeId type = kNoNode;  // a global or string; kNoNode: "<object>"
    NodeId args = kNoNode;
    NodeId keyword_args = kNoNode;
    NodeId state = kNoNode;
    Run items;
    Run entries;
    uint64_t file_offset = 0;
  };
  struct ArrayParts {
    NodeId dtype = kNoNode;  // a string
    Run sizes;
    bool is_scalar = false;
    bool is_fortran_order = false;
    Text bytes;
  };

  void set_root(NodeId root) noexcept {
    root_ = root;
  }
  NodeId add_none() {
    return add(NodeKind::kNone, 0, 0);
  }
  NodeId add_bool(bool value) {
    return add(NodeKind::kBool, 0, value ? 1 : 0);
  }
  NodeId add_int(int64_t value) {
    return add(NodeKind::kInt, 0, static_cast<uint64_t>(value));
  }
  NodeId add_float(double value);
  [[nodiscard]] Text add_text(std::string_view text);
  NodeId add_text_node(NodeKind kind, Text text) {
    return add(kind, text.size_bytes, text.begin);
  }
  NodeId add_text_node(NodeKind kind, std::string_view text) {
    return add_text_node(kind, add_text(text));
  }
  [[nodiscard]] Text text_of(NodeId id) const noexcept {
    return {nodes_[id].second, nodes_[id].first};
  }
  // THROWS: CheckpointError Unsupported when the tree outgrows 32 bits.
  [[nodiscard]] Run add_run(size_t count);
  // REQUIRES: position < run.count.
  void set_value(const Run& run, size_t position, NodeId value) noexcept {
    pool_[run.begin + position] = value;
  }
  [[nodiscard]] NodeId value(const Run& run, size_t position) const noexcept {
    return pool_[run.begin + position];
  }
  // A tuple, list, set, complex or plain dict.
  NodeId add_container(NodeKind kind, const Run& run) {
    return add(kind, run.count, run.begin);
  }
  // Of a tuple, list, set or plain dict.
  [[nodiscard]] Run run_of(NodeId id) const noexcept {
    return {nodes_[id].second, nodes_[id].first};
  }
  NodeId add_tensor(uint32_t tensor_index) {
    return add(NodeKind::kTensor, tensor_index, 0);
  }
  NodeId add_tensor(uint32_t tensor_index, const ObjectParts& parts);
  // A dict or object; its parts may be changed until the tree is built.
  NodeId add_object(NodeKind kind, const ObjectParts& parts);
  [[nodiscard]] ObjectParts& object_parts(NodeId id) noexcept;
  NodeId add_array(const ArrayParts& parts);

  // A copy of another tree's array, without its sizes.
  NodeId add_copy(const ValueTree& other, NodeId array);

  // For checkpoints that are a flat list of names: appends to the root, a plain
  // dict that the first call makes, and returns the key's node.
  // REQUIRES: nothing else adds runs to this tree.
  NodeId add_flat_entry(std::string_view name, uint32_t tensor_index);

  // For so many entries of dicts, each with a key of its own: a hint.
  void reserve_entries(size_t count);

  // Gives back what the vectors reserved.
  void shrink_to_fit();

 private:
  struct Node {
    // string, bytes, big int, global: size and begin in texts_
    // complex, tuple, list, set, dict: count and begin in pool_
    // tensor:                 tensor index; position in objects_ plus 1, or 0
    // object, dict with has_parts: position in objects_
    // array:                  position in arrays_
    // bool, int, float:       the value's bits are `second`
    uint32_t first;
    NodeKind kind;
    bool has_parts;
    uint64_t second;
  };

  NodeId add(NodeKind kind, uint32_t first, uint64_t second);

  std::vector<Node> nodes_;
  std::vector<NodeId> pool_;
  std::vector<ObjectParts> objects_;
  std::vector<ArrayParts> arrays_;
  std::string texts_;
  NodeId root_ = kNoNode;
};

}  // namespace ckpt_streamer::format
