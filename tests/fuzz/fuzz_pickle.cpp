// A pickle: as a tree, every value of which is looked at, and as the scan for
// its end sees it.
#include <cstdint>
#include <optional>
#include <span>

#include "format/pickle_extent.h"
#include "format/pickle_machine.h"
#include "format/pickle_text.h"
#include "format/text.h"
#include "fuzz_target.h"
#include "memory_source.h"

using namespace ckpt_streamer;

namespace {

void check_ids(
    const format::PickleTree& tree,
    std::span<const format::ValueId> ids) {
  for (const format::ValueId id : ids) {
    fuzz::require(id < tree.size(), "ids are those of the tree's nodes");
  }
}

void look_at(const format::PickleTree& tree, format::ValueId id) {
  using format::ValueKind;
  fuzz::require(
      format::is_valid_utf8(format::key_text(tree, id)) &&
          format::is_valid_utf8(format::element_text(tree, id)) &&
          format::is_valid_utf8(format::global_text(tree, id)),
      "values are UTF-8 in messages");
  switch (tree.kind(id)) {
    case ValueKind::kTuple:
    case ValueKind::kList:
    case ValueKind::kSet:
      return check_ids(tree, tree.items(id));
    case ValueKind::kDict:
      fuzz::require(
          tree.entries(id).size() % 2 == 0,
          "dicts have as many values as keys");
      return check_ids(tree, tree.entries(id));
    case ValueKind::kObject: {
      const format::PickleObject object = tree.object(id);
      fuzz::require(
          object.callable < tree.size() && object.args < tree.size() &&
              tree.kind(object.args) == ValueKind::kTuple,
          "objects are called with tuples");
      check_ids(tree, object.items);
      return check_ids(tree, object.entries);
    }
    default:
      return;
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const format::PickleOrigin origin{"m.pt", "data.pkl", 0};
  const testing::MemorySource source(fuzz::text_of(data, size));
  std::optional<uint64_t> end;
  fuzz::is_read([&] { end = format::find_pickle_end(source, origin); });
  const bool is_pickle = fuzz::is_read([&] {
    const auto tree =
        format::PickleTree::load(source, end.value_or(size), origin);
    for (format::ValueId id = 0; id < tree.size(); ++id) {
      look_at(tree, id);
    }
  });
  fuzz::require(
      end.has_value() || !is_pickle,
      "what is a pickle has an end that the scan finds");
  return 0;
}
