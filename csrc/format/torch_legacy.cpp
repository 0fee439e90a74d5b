#include "format/torch_legacy.h"

#include <string>
#include <utility>

#include "base/error.h"
#include "format/legacy_storages.h"
#include "format/pickle_extent.h"
#include "format/pickle_machine.h"
#include "format/pickle_text.h"
#include "format/tensor_tree.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

using namespace std::string_view_literals;

// serialization.py, PROTOCOL_VERSION.
constexpr int64_t kProtocolVersion = 1001;

struct PlacedPickle {
  PickleTree tree;
  PickleOrigin origin;
  uint64_t end;  // absolute, behind its STOP
};

PlacedPickle read_pickle(
    const ByteSource& source,
    uint64_t file_offset,
    const char* name) {
  PickleOrigin origin{source.path(), name, file_offset};
  const uint64_t end = find_pickle_end(source, origin);
  PickleTree tree = PickleTree::load(source, end - file_offset, origin);
  return {std::move(tree), std::move(origin), end};
}

[[noreturn]] void fail_root(
    ErrorKind kind,
    const PlacedPickle& pickle,
    const std::string& expected) {
  throw CheckpointError(
      kind,
      pickle.origin.path,
      "the " + pickle.origin.record_name + " is " +
          element_text(pickle.tree, pickle.tree.root()) + ", expected " +
          expected,
      pickle.origin.file_offset);
}

void check_protocol_version(const PlacedPickle& pickle) {
  const ValueId root = pickle.tree.root();
  if (pickle.tree.kind(root) != ValueKind::kInt) {
    fail_root(ErrorKind::kCorrupt, pickle, std::to_string(kProtocolVersion));
  }
  if (pickle.tree.int_value(root) != kProtocolVersion) {
    fail_root(
        ErrorKind::kUnsupported,
        pickle,
        std::to_string(kProtocolVersion));
  }
}

// The other entries, "protocol_version" and "type_sizes", say nothing that is
// needed: counts are int64 always, elements of the size of their type.
void check_sys_info(const PlacedPickle& pickle) {
  const PickleTree& tree = pickle.tree;
  if (tree.kind(tree.root()) != ValueKind::kDict) {
    fail_root(ErrorKind::kCorrupt, pickle, "a dict");
  }
  const std::span<const ValueId> entries = tree.entries(tree.root());
  for (size_t i = 0; i < entries.size(); i += 2) {
    const ValueId key = entries[i];
    const ValueId value = entries[i + 1];
    if (tree.kind(key) != ValueKind::kString ||
        tree.text(key) != "little_endian") {
      continue;
    }
    if (tree.kind(value) != ValueKind::kBool) {
      throw CheckpointError(
          ErrorKind::kCorrupt,
          pickle.origin.path,
          "'little_endian' of the sys_info is " + element_text(tree, value) +
              ", expected a bool",
          pickle.origin.file_offset);
    }
    if (!tree.bool_value(value)) {
      throw CheckpointError(
          ErrorKind::kUnsupported,
          pickle.origin.path,
          "was saved on a big-endian machine ('little_endian' of the sys_info "
          "is False), expected little-endian",
          pickle.origin.file_offset);
    }
  }
}

}  // namespace

bool is_torch_legacy(std::string_view head) noexcept {
  // serialization.py, MAGIC_NUMBER = 0x1950a86a20f9469cfc6c: as a decimal line
  // in protocols 0 and 1, else as a LONG1 of 10 bytes, from protocol 4 on in a
  // frame.
  if (head.starts_with("L119547037146038801333356L\n."sv)) {
    return true;
  }
  if (head.size() < 2 || head[0] != '\x80' || head[1] < 2 || head[1] > 5) {
    return false;
  }
  head.remove_prefix(2);
  if (head.size() >= 9 && head[0] == '\x95') {
    head.remove_prefix(9);
  }
  return head.starts_with(
      "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."sv);
}

CheckpointIndex read_torch_legacy(const ByteSource& source) {
  const PlacedPickle magic = read_pickle(source, 0, "magic number");
  const PlacedPickle version =
      read_pickle(source, magic.end, "protocol version");
  check_protocol_version(version);
  const PlacedPickle sys_info = read_pickle(source, version.end, "sys_info");
  check_sys_info(sys_info);
  const PlacedPickle object = read_pickle(source, sys_info.end, "object");
  const PlacedPickle keys = read_pickle(source, object.end, "storage keys");
  LegacyStorages storages(
      source,
      object.tree,
      object.origin,
      keys.tree,
      keys.origin,
      keys.end);
  CheckpointIndex index;
  append_tensors(
      {object.tree, object.origin, object.end - sys_info.end},
      storages,
      "",
      index);
  return index;
}

}  // namespace ckpt_streamer::format
