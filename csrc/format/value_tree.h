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
  kBytes,
  kTuple,  // also torch.Size
  kList,   // also deque
  kDict,   // also OrderedDict, defaultdict, Counter and classes derived from them
  kSet,    // also frozenset
  kTensor,
  kArray,   // a numpy array or scalar of a plain dtype
  kGlobal,  // a class or function, by its name; also torch.dtype and the like
  kObject,  // anything else that the file would have made by calling something
};

// What a dict or object has beside its items. Absent parts are kNoNode or empty.
struct ObjectNode {
  std::string_view type_name;      // "module.name"; "dict" for a plain dict
  NodeId args = kNoNode;           // a tuple: what it would be called with
  NodeId keyword_args = kNoNode;   // a dict
  NodeId state = kNoNode;          // of __setstate__ or __dict__, as pickled
  std::span<const NodeId> items;   // of a class derived from list or set
  std::span<const NodeId> entries; // key, value, key, value
  uint64_t file_offset = 0;        // of the opcode that made it; 0 without one
};

struct ArrayNode {
  std::string_view dtype;        // numpy's str: "<f8", "|b1", "<U5"
  std::span<const NodeId> sizes; // ints; none for a scalar
  bool is_scalar = false;        // numpy.float64(3), not numpy.array(3)
  bool is_fortran_order = false;
  std::string_view bytes;        // little-endian unless dtype says ">"
};

class ValueTree {
 public:
  // kNoNode for a tree that nothing was added to.
  [[nodiscard]] NodeId root() const noexcept;
  // Ids are [0, size()).
  [[nodiscard]] size_t size() const noexcept;
  [[nodiscard]] NodeKind kind(NodeId id) const noexcept;

  // The accessors below REQUIRE: a node of the kind that they name. What they
  // return lives as long as the tree is not added to.

  [[nodiscard]] bool bool_value(NodeId id) const noexcept;
  [[nodiscard]] int64_t int_value(NodeId id) const noexcept;
  [[nodiscard]] double float_value(NodeId id) const noexcept;
  // Of a string (valid UTF-8), bytes, big int or global.
  [[nodiscard]] std::string_view text(NodeId id) const noexcept;
  // Of a tuple, list, set or complex.
  [[nodiscard]] std::span<const NodeId> items(NodeId id) const noexcept;
  // Of a dict: key, value, key, value, in the order of insertion.
  [[nodiscard]] std::span<const NodeId> entries(NodeId id) const noexcept;
  // Of a dict (its entries included) or an object.
  [[nodiscard]] ObjectNode object(NodeId id) const noexcept;
  // Of a tensor: its position in CheckpointIndex::tensors.
  [[nodiscard]] uint32_t tensor_index(NodeId id) const noexcept;
  [[nodiscard]] ArrayNode array(NodeId id) const noexcept;
};

}  // namespace ckpt_streamer::format
