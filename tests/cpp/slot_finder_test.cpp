#include "format/slot_finder.h"

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "format/slot_names.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

// {"a.b": t, "a": {"b": t, 0: t, "0": t}}
CheckpointIndex index_of_repeated_names() {
  CheckpointIndex index;
  index.files.push_back({"model.pt", {}});
  index.storages.push_back({{0, 4}, 0});
  index.tensors.push_back({});
  ValueTree& values = index.values;
  const auto text = [&](const char* characters) {
    return values.add_text_node(
        NodeKind::kString,
        std::string_view(characters));
  };
  index.prefixes.push_back({kNoPrefix, text("a")});
  index.slots.push_back({0, text("a.b"), kNoPrefix, 0});
  index.slots.push_back({1, text("b"), 0, 0});
  index.slots.push_back({1, values.add_int(0), 0, 0});
  index.slots.push_back({1, text("0"), 0, 0});
  return index;
}

TEST(slots_are_found_by_their_dotted_names) {
  const CheckpointIndex index = index_of_repeated_names();
  const SlotFinder finder(index, {0, 1, 2, 3});
  EXPECT((finder.find("a.b") == std::vector<uint32_t>{0, 1}));
  EXPECT((finder.find("a.0") == std::vector<uint32_t>{2, 3}));
  EXPECT(finder.find("a").empty());
  EXPECT(finder.find("").empty());
}

TEST(only_the_given_slots_are_found_by_their_positions) {
  const CheckpointIndex index = index_of_repeated_names();
  const SlotFinder finder(index, {3, 1});
  EXPECT((finder.find("a.b") == std::vector<uint32_t>{1}));
  EXPECT_EQ(finder.find_one("a.0"), uint32_t{0});
}

TEST(a_name_of_several_slots_is_an_error_with_their_keys) {
  const CheckpointIndex index = index_of_repeated_names();
  const SlotFinder finder(index, {0, 1, 2, 3});
  EXPECT_THROWS(
      CheckpointError,
      "model.pt: has 2 tensors of the name 'a.b', ['a.b'] and "
      "['a']['b'], expected the name of one",
      finder.find_one("a.b"));
  EXPECT_THROWS(
      CheckpointError,
      "model.pt: has 2 tensors of the name 'a.0', ['a'][0] and "
      "['a']['0'], expected the name of one",
      finder.find_one("a.0"));
  EXPECT_THROWS(
      CheckpointError,
      "model.pt: has no tensor 'c'",
      finder.find_one("c"));
}

TEST(tensors_without_bytes_are_of_a_file_too) {
  CheckpointIndex index;
  for (const char* path : {"one.pt", "two.pt"}) {
    CheckpointIndex file;
    file.files.push_back({path, {}});
    file.tensors.push_back({});
    file.add_named_slot("w", 0);
    index.append(std::move(file));
  }
  EXPECT_THROWS(
      CheckpointError,
      "one.pt: has 2 tensors of the name 'w', ['w'] of one.pt and ['w'] of "
      "two.pt, expected the name of one",
      SlotFinder(index, {0, 1}).find_one("w"));
}

TEST(names_come_in_any_order_of_their_containers) {
  CheckpointIndex index = index_of_repeated_names();
  index.slots.push_back({1, kNoNode, 0, 0});          // what "a" is itself
  index.slots.push_back({0, kNoNode, kNoPrefix, 0});  // the root
  SlotNames names(index);
  for (const size_t slot : {0, 1, 0, 2, 4, 5, 1, 3, 5, 4}) {
    EXPECT_EQ(names.name(slot), index.slot_name(slot));
  }
}

}  // namespace
}  // namespace ckpt_streamer::format
