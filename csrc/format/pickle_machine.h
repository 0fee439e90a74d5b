// Runs a pickle as data: every value becomes a node of a PickleTree, and a
// call (REDUCE, NEWOBJ, ...) becomes an object node that says what would have
// been called with what. Nothing is imported, constructed or called.
//
// Nodes are shared as the pickle shares them, so the "tree" may have shared
// branches and cycles. Its memory is linear in the size of the pickle,
// whatever the pickle says, and nothing here recurses. A finished tree is safe
// to share between threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/byte_source.h"
#include "format/id_buffer.h"

namespace ckpt_streamer::format {

// A node of one tree. Equal ids are the same Python object; equal None, bools,
// empty tuples and ints may share an id, whether or not they do in CPython.
using ValueId = uint32_t;

inline constexpr ValueId kNoValue = 0xFFFFFFFF;

enum class ValueKind : uint8_t {
  kNone,
  kBool,
  kInt,     // fits int64
  kBigInt,  // does not; kept as text
  kFloat,
  kString,
  kBytes,  // bytes or bytearray
  kTuple,
  kList,
  kDict,
  kSet,  // set or frozenset
  kGlobal,
  kObject,      // what REDUCE, NEWOBJ, NEWOBJ_EX, OBJ or INST would have made
  kPersistent,  // stands for what persistent_load(pid) would return
};

struct PickleGlobal {
  std::string_view module;
  std::string_view name;
};

struct PickleObject {
  ValueId callable = kNoValue;
  ValueId args = kNoValue;           // a tuple
  ValueId keyword_args = kNoValue;   // NEWOBJ_EX only
  ValueId state = kNoValue;          // of the last BUILD
  std::span<const ValueId> items;    // what APPEND(S) and ADDITEMS added
  std::span<const ValueId> entries;  // of SETITEM(S): key, value, key, value
  uint64_t pickle_offset = 0;        // of the opcode that made it
};

// Larger pickles are not read: what keeps every count of a tree in 32 bits.
inline constexpr uint64_t kPickleLimitBytes = uint64_t{1} << 31;

// Where a pickle comes from, for messages.
struct PickleOrigin {
  std::string path;
  std::string record_name;
  uint64_t file_offset = 0;  // of the pickle's first byte
};

class PickleTree {
 public:
  // Runs the pickle up to its STOP; what follows it is ignored, as pickle.load
  // does. Strings of any encoding are taken as they are.
  // THROWS: CheckpointError Corrupt for bytes that are no pickle of protocol
  // 0 to 5, Unsupported for a later protocol, for opcodes that need a
  // registry or buffers from elsewhere (EXT*, NEXT_BUFFER, READONLY_BUFFER)
  // and for 2 GiB or more. Each names the opcode and its byte in the file.
  // REQUIRES: the `size_bytes` from origin.file_offset on are inside `source`,
  // which is not needed afterwards.
  // Cost: O(size) time and memory; one pass.
  [[nodiscard]] static PickleTree load(
      const ByteSource& source,
      uint64_t size_bytes,
      const PickleOrigin& origin);

  [[nodiscard]] ValueId root() const noexcept {
    return root_;
  }
  // Ids are [0, size()).
  [[nodiscard]] size_t size() const noexcept {
    return nodes_.size();
  }
  [[nodiscard]] ValueKind kind(ValueId id) const noexcept {
    return nodes_[id].kind;
  }

  // The accessors below REQUIRE: a value of the kind that they name.

  [[nodiscard]] bool bool_value(ValueId id) const noexcept {
    return nodes_[id].first != 0;
  }
  [[nodiscard]] int64_t int_value(ValueId id) const noexcept {
    return static_cast<int64_t>(bits_of(nodes_[id]));
  }
  [[nodiscard]] double float_value(ValueId id) const noexcept;

  // A string's or bytes' bytes; a big int in decimal, or in hex (0x...) beyond
  // 256 bits. Lives as long as the tree.
  [[nodiscard]] std::string_view text(ValueId id) const noexcept;

  // Of a tuple, list or set. Lives as long as the tree.
  [[nodiscard]] std::span<const ValueId> items(ValueId id) const noexcept;

  // Of a dict: key, value, key, value, in the order of insertion; a key may
  // come twice in a hostile pickle. Lives as long as the tree.
  [[nodiscard]] std::span<const ValueId> entries(ValueId id) const noexcept {
    return sequence_items(nodes_[id].first);
  }

  // Globals and objects are numbered [0, global_count()), [0, object_count()),
  // for tables beside the tree.
  [[nodiscard]] uint32_t global_index(ValueId id) const noexcept {
    return nodes_[id].first;
  }
  [[nodiscard]] size_t global_count() const noexcept {
    return globals_.size();
  }
  // Lives as long as the tree.
  [[nodiscard]] PickleGlobal global(uint32_t index) const noexcept {
    return {text(globals_[index].module), text(globals_[index].name)};
  }
  [[nodiscard]] uint32_t object_index(ValueId id) const noexcept {
    return nodes_[id].first;
  }
  [[nodiscard]] size_t object_count() const noexcept {
    return objects_.size();
  }
  [[nodiscard]] PickleObject object(ValueId id) const noexcept;

  [[nodiscard]] ValueId persistent_id(ValueId id) const noexcept {
    return nodes_[id].first;
  }
  // Of the whole tree; shared ones once.
  [[nodiscard]] size_t persistent_count() const noexcept {
    return persistent_count_;
  }
  [[nodiscard]] uint64_t persistent_pickle_offset(ValueId id) const noexcept {
    return nodes_[id].second;
  }

 private:
  friend class PickleMachine;

  struct Node {
    // string, bytes, big int: begin and size of the text in texts_
    // tuple:                  begin and count in pool_
    // list, dict, set:        index in sequences_
    // global, object:         index in globals_ or objects_
    // persistent:             the pid's node and the opcode's offset
    // bool, int, float:       the lower and the upper half of the value's bits
    uint32_t first;
    uint32_t second;
    ValueKind kind;
  };
  struct Global {
    ValueId module;
    ValueId name;
  };
  // Most objects of a checkpoint are plain calls, so what few have is apart.
  struct Object {
    ValueId callable;
    ValueId args;
    uint32_t pickle_offset;
    uint32_t extras_index;
  };
  struct ObjectExtras {
    ValueId keyword_args = kNoValue;
    ValueId state = kNoValue;
    uint32_t items_sequence = kNoValue;
    uint32_t entries_sequence = kNoValue;
  };
  // While the machine runs, a sequence is a chain of runs (its first and last
  // run); afterwards it is [first, first + second) of pool_.
  struct Sequence {
    uint32_t first = kNoValue;
    uint32_t second = kNoValue;
  };

  [[nodiscard]] static uint64_t bits_of(const Node& node) noexcept {
    return uint64_t{node.second} << 32 | node.first;
  }
  [[nodiscard]] std::span<const ValueId> sequence_items(
      uint32_t index) const noexcept;

  std::vector<Node> nodes_;
  IdBuffer pool_;
  std::vector<Sequence> sequences_;
  std::vector<Global> globals_;
  std::vector<Object> objects_;
  std::vector<ObjectExtras> extras_;
  std::string texts_;
  size_t persistent_count_ = 0;
  ValueId root_ = kNoValue;
};

}  // namespace ckpt_streamer::format
