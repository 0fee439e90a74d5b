#include "format/name_index.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace ckpt_streamer::format {
namespace {

uint32_t hash_of(std::string_view name) noexcept {
  const uint64_t hash = std::hash<std::string_view>{}(name);
  return static_cast<uint32_t>(hash ^ hash >> 32);
}

// Numbers ascend in this order: "data/9" is before "data/10".
bool is_shorter_or_before(
    std::string_view left,
    std::string_view right) noexcept {
  return left.size() != right.size() ? left.size() < right.size()
                                     : left < right;
}

}  // namespace

NameIndex::NameIndex(std::vector<std::string_view> names)
    : names_(std::move(names)) {
  find_ascending_run();
  if (names_.size() - (run_end_ - run_begin_) <= kMostOutsiders) {
    check_outsiders();
  } else {
    run_begin_ = 0;
    run_end_ = 0;
    build_buckets();
  }
}

void NameIndex::find_ascending_run() noexcept {
  size_t begin = 0;
  for (size_t i = 1; i <= names_.size(); ++i) {
    if (i < names_.size() && is_shorter_or_before(names_[i - 1], names_[i])) {
      continue;
    }
    if (i - begin > run_end_ - run_begin_) {
      run_begin_ = begin;
      run_end_ = i;
    }
    begin = i;
  }
}

std::optional<uint32_t> NameIndex::find_in_run(
    std::string_view name) const noexcept {
  const auto begin = names_.begin() + static_cast<ptrdiff_t>(run_begin_);
  const auto end = names_.begin() + static_cast<ptrdiff_t>(run_end_);
  const auto found = std::lower_bound(begin, end, name, is_shorter_or_before);
  if (found == end || *found != name) {
    return std::nullopt;
  }
  return static_cast<uint32_t>(found - names_.begin());
}

std::optional<uint32_t> NameIndex::find_outsider(
    std::string_view name,
    size_t end) const noexcept {
  for (size_t i = 0; i < end; ++i) {
    if (i == run_begin_) {
      i = run_end_;
    }
    if (i < end && names_[i] == name) {
      return static_cast<uint32_t>(i);
    }
  }
  return std::nullopt;
}

void NameIndex::check_outsiders() noexcept {
  for (size_t i = 0; i < names_.size() && !duplicate_.has_value(); ++i) {
    if (i == run_begin_) {
      i = run_end_;
    }
    if (i == names_.size()) {
      return;
    }
    auto twin = find_in_run(names_[i]);
    if (!twin.has_value()) {
      twin = find_outsider(names_[i], i);
    }
    if (twin.has_value()) {
      duplicate_ = std::minmax(*twin, static_cast<uint32_t>(i));
    }
  }
}

void NameIndex::build_buckets() {
  bucket_begins_.assign(std::bit_ceil(names_.size() + 1) + 1, 0);
  entries_.resize(names_.size());
  // A counting sort: the buckets' sizes, then their begins, then the names.
  std::vector<uint32_t> hashes(names_.size());
  for (size_t i = 0; i < names_.size(); ++i) {
    hashes[i] = hash_of(names_[i]);
    ++bucket_begins_[bucket_of(hashes[i])];
  }
  uint32_t total = 0;
  for (uint32_t& begin : bucket_begins_) {
    const uint32_t count = begin;
    begin = total;
    total += count;
  }
  std::vector<uint32_t> next(bucket_begins_.begin(), bucket_begins_.end() - 1);
  for (size_t i = 0; i < names_.size(); ++i) {
    entries_[next[bucket_of(hashes[i])]++] = {
        hashes[i],
        static_cast<uint32_t>(i)};
  }
  const auto is_before = [&](const Entry& left, const Entry& right) {
    if (left.hash != right.hash) {
      return left.hash < right.hash;
    }
    const int order = names_[left.position].compare(names_[right.position]);
    return order != 0 ? order < 0 : left.position < right.position;
  };
  for (size_t bucket = 0; bucket + 1 < bucket_begins_.size(); ++bucket) {
    const uint32_t begin = bucket_begins_[bucket];
    const uint32_t end = bucket_begins_[bucket + 1];
    if (end - begin < 2) {
      continue;
    }
    std::sort(entries_.begin() + begin, entries_.begin() + end, is_before);
    for (uint32_t i = begin + 1; i < end && !duplicate_.has_value(); ++i) {
      const Entry& left = entries_[i - 1];
      const Entry& right = entries_[i];
      if (left.hash == right.hash &&
          names_[left.position] == names_[right.position]) {
        duplicate_ = {left.position, right.position};
      }
    }
  }
}

std::optional<uint32_t> NameIndex::find(std::string_view name) const noexcept {
  if (bucket_begins_.empty()) {
    const auto position = find_in_run(name);
    return position.has_value() ? position : find_outsider(name, names_.size());
  }
  const uint32_t hash = hash_of(name);
  const size_t bucket = bucket_of(hash);
  const auto end = entries_.begin() + bucket_begins_[bucket + 1];
  const auto found = std::lower_bound(
      entries_.begin() + bucket_begins_[bucket],
      end,
      name,
      [&](const Entry& entry, std::string_view wanted) {
        return entry.hash != hash ? entry.hash < hash
                                  : names_[entry.position] < wanted;
      });
  if (found == end || names_[found->position] != name) {
    return std::nullopt;
  }
  return found->position;
}

size_t NameIndex::bucket_of(uint32_t hash) const noexcept {
  return hash & (bucket_begins_.size() - 2);
}

}  // namespace ckpt_streamer::format
