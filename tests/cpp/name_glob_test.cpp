#include "format/name_glob.h"

#include <string>
#include <vector>

#include "base/error.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

CheckpointIndex index_of(const std::vector<std::string>& names) {
  CheckpointIndex index;
  index.files.push_back({"model.pt", {}});
  index.tensors.push_back({});
  for (const std::string& name : names) {
    index.add_named_slot(name, 0);
  }
  return index;
}

TEST(globs_take_texts_characters_and_sets) {
  EXPECT(NameGlob("a.*").matches("a.b.c"));
  EXPECT(NameGlob("*").matches(""));
  EXPECT(NameGlob("").matches(""));
  EXPECT(!NameGlob("").matches("a"));
  EXPECT(NameGlob("a?c").matches("a.c"));
  EXPECT(!NameGlob("a?c").matches("ac"));
  EXPECT(NameGlob("[a-c]x").matches("bx"));
  EXPECT(!NameGlob("[!a-c]x").matches("bx"));
  EXPECT(NameGlob("[]]").matches("]"));
  EXPECT(NameGlob("[!]]").matches("["));
  EXPECT(NameGlob("[a").matches("[a"));
  EXPECT(NameGlob("*a*b").matches("aabab"));
  EXPECT(!NameGlob("A").matches("a"));
}

TEST(a_character_is_one_of_utf8_or_a_byte_that_is_none) {
  EXPECT(NameGlob("?").matches("\u00e4"));
  EXPECT(NameGlob("[\u00e0-\u00ef]").matches("\u00e4"));
  EXPECT(NameGlob("??").matches("\xff\xc3"));
  EXPECT(NameGlob("\xc3*").matches("\xc3("));
}

TEST(many_stars_take_no_exponential_time) {
  std::string pattern;
  for (int i = 0; i < 300; ++i) {
    pattern += "*a";
  }
  EXPECT(!NameGlob(pattern + "*b").matches(std::string(2000, 'a')));
}

TEST(slots_are_chosen_in_their_order) {
  const CheckpointIndex index = index_of({"a.w", "b", "c.w"});
  const std::vector<uint32_t> slots = {2, 0, 1};
  EXPECT(
      (matching_slots(index, slots, std::vector<std::string>{"*.w"}) ==
       std::vector<uint32_t>{2, 0}));
}

TEST(patterns_that_match_nothing_are_errors) {
  const CheckpointIndex index = index_of({"a", "b"});
  const std::vector<uint32_t> slots = {0, 1};
  EXPECT_THROWS(
      CheckpointError,
      "model.pt: none of 2 tensors is named as 'x*', 'A'; the first is 'a'",
      matching_slots(index, slots, std::vector<std::string>{"x*", "a", "A"}));
  EXPECT_THROWS(
      CheckpointError,
      "model.pt: is to be read by no patterns, expected at least one",
      matching_slots(index, slots, std::vector<std::string>{}));
}

}  // namespace
}  // namespace ckpt_streamer::format
