// Finds names in a fixed set, and the first pair of equal ones.
//
// Names that were numbered as they were written, as those of torch.save's
// records, ascend but for a few: those are searched as they are. Else a bucket
// array over sorted buckets: one hash away when the names are ordinary, and
// still O(log names) a lookup when a hostile file made them all collide. Safe
// to share between threads once built.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace ckpt_streamer::format {

class NameIndex {
 public:
  NameIndex() = default;

  // Cost: O(names), at worst O(names log names).
  // REQUIRES: fewer than 2^32 names; the characters outlive the index.
  explicit NameIndex(std::vector<std::string_view> names);

  // The position of the name in the constructor's vector.
  [[nodiscard]] std::optional<uint32_t> find(
      std::string_view name) const noexcept;

  [[nodiscard]] std::string_view name(uint32_t position) const noexcept {
    return names_[position];
  }

  // The positions (smaller first) of some pair of equal names.
  [[nodiscard]] const std::optional<std::pair<uint32_t, uint32_t>>& duplicate()
      const noexcept {
    return duplicate_;
  }

 private:
  // The hash comes along so that names themselves are compared only when they
  // are all but certainly equal.
  struct Entry {
    uint32_t hash;
    uint32_t position;  // in names_
  };

  // Outside the run; each lookup of one goes through all of them.
  static constexpr size_t kMostOutsiders = 32;

  void find_ascending_run() noexcept;
  [[nodiscard]] std::optional<uint32_t> find_in_run(
      std::string_view name) const noexcept;
  // Among the first `end` names.
  [[nodiscard]] std::optional<uint32_t> find_outsider(
      std::string_view name,
      size_t end) const noexcept;
  void check_outsiders() noexcept;

  void build_buckets();
  [[nodiscard]] size_t bucket_of(uint32_t hash) const noexcept;

  std::vector<std::string_view> names_;
  // The longest stretch of names_ that ascends by length, then by bytes; empty
  // if there are buckets.
  size_t run_begin_ = 0;
  size_t run_end_ = 0;
  std::vector<uint32_t> bucket_begins_;  // into entries_; one more at the end
  std::vector<Entry> entries_;  // bucket by bucket, sorted by hash and name
  std::optional<std::pair<uint32_t, uint32_t>> duplicate_;
};

}  // namespace ckpt_streamer::format
