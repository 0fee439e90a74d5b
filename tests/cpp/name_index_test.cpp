#include "format/name_index.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using Names = std::vector<std::string>;

// "archive/data/0" and so on, which ascend by length, then by bytes.
Names numbered(size_t count) {
  Names names;
  for (size_t i = 0; i < count; ++i) {
    names.push_back("archive/data/" + std::to_string(i));
  }
  return names;
}

Names shuffled(Names names) {
  std::mt19937 generator(0);
  std::shuffle(names.begin(), names.end(), generator);
  return names;
}

void expect_finds_all(const Names& names) {
  const NameIndex index({names.begin(), names.end()});
  EXPECT(!index.duplicate().has_value());
  for (uint32_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(index.find(names[i]).value(), i);
  }
  for (const std::string absent :
       {"", "a", "archive/data/", "archive/data/99999", "archive/version/x"}) {
    EXPECT(!index.find(absent).has_value());
  }
}

void expect_duplicate(const Names& names, uint32_t first, uint32_t second) {
  const NameIndex index({names.begin(), names.end()});
  EXPECT(index.duplicate().has_value());
  EXPECT_EQ(index.duplicate()->first, first);
  EXPECT_EQ(index.duplicate()->second, second);
}

TEST(name_index_of_few_names) {
  expect_finds_all({});
  expect_finds_all({"x"});
  expect_finds_all({"x", "b", "yy", "c"});
  EXPECT_EQ(NameIndex({""}).find("").value(), 0U);
  expect_duplicate({"x", "x"}, 0, 1);
  expect_duplicate({"x", "b", "x"}, 0, 2);
  expect_duplicate({"", "b", ""}, 0, 2);
}

TEST(name_index_finds_every_name_once) {
  expect_finds_all(numbered(5000));
  expect_finds_all(shuffled(numbered(5000)));
  Names reversed = numbered(5000);
  std::reverse(reversed.begin(), reversed.end());
  expect_finds_all(reversed);
}

TEST(name_index_finds_those_outside_the_ascending_run) {
  // Around the number of them from which on buckets are made.
  for (size_t outsiders = 0; outsiders <= 70; ++outsiders) {
    Names names = numbered(500);
    for (size_t i = 0; i < outsiders; ++i) {
      const std::string name =
          "other/" + std::string(outsiders - i, 'o') + "/data/longer";
      names.insert(i % 2 == 0 ? names.begin() : names.end(), name);
    }
    expect_finds_all(names);
  }
}

TEST(name_index_finds_equal_names) {
  Names names = numbered(5000);
  names[4000] = names[7];
  expect_duplicate(names, 7, 4000);  // both runs are long
  names = numbered(5000);
  names[4990] = names[7];
  expect_duplicate(names, 7, 4990);
  names = numbered(5000);
  names[7] = names[4990];
  expect_duplicate(names, 7, 4990);
  names = numbered(5000);
  names[8] = names[7];
  expect_duplicate(names, 7, 8);
  names = numbered(5000);
  names[4999] = names[4998];
  expect_duplicate(names, 4998, 4999);
  names = numbered(5000);
  names.insert(names.begin(), "version");
  names.push_back("version");
  expect_duplicate(names, 0, 5001);
  names = shuffled(numbered(5000));
  names[4000] = names[7];
  expect_duplicate(names, 7, 4000);
}

}  // namespace
}  // namespace ckpt_streamer::format
