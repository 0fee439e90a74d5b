// What the walk of one pickle shares with those who rebuild its tensors: the
// pickle, what its globals mean, and the name of the value that is looked at.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "format/pickle_globals.h"
#include "format/pickle_machine.h"
#include "format/tensor_tree.h"

namespace ckpt_streamer::format {

class PickleContext {
 public:
  // REQUIRES: what `pickle` refers to outlives this.
  PickleContext(const TensorPickle& pickle, std::string_view root_name);

  [[nodiscard]] const PickleTree& tree() const noexcept {
    return tree_;
  }
  [[nodiscard]] const PickleOrigin& origin() const noexcept {
    return origin_;
  }
  // Of a global or anything else.
  [[nodiscard]] GlobalMeaning meaning(ValueId id) const {
    return tree_.kind(id) == ValueKind::kGlobal
               ? globals_[tree_.global_index(id)]
               : GlobalMeaning{};
  }
  [[nodiscard]] uint64_t in_file(uint64_t pickle_offset) const noexcept {
    return origin_.file_offset + pickle_offset;
  }

  // The name of the value that is visited: keys joined by '.'.
  [[nodiscard]] const std::string& path() const noexcept {
    return path_;
  }
  void cut_path(size_t byte_count) {
    path_.resize(byte_count);
  }
  // Behind a '.' unless it is the first part of all.
  // REQUIRES: valid UTF-8.
  // THROWS: CheckpointError Unsupported when the parts add up to many times the
  // pickle.
  void append_part(std::string_view part, bool is_first);
  // THROWS: CheckpointError Corrupt for a string that is not UTF-8.
  void check_key(ValueId key) const;
  // Names repeat the keys of their containers, so a small pickle could ask for
  // any amount of them: counts `byte_count` more bytes of names.
  // THROWS: CheckpointError Unsupported, as above.
  void charge_name(uint64_t byte_count);

  // THROWS: CheckpointError Corrupt for a key that is set twice in the dict at
  // path(). A dict has one value for a key, and readers would differ in which
  // they take. Compares strings and numbers as Python's == does, not tuples and
  // objects.
  void check_distinct_keys(std::span<const ValueId> entries);

  // THROWS: CheckpointError Corrupt for anything but an int of 0 or more;
  // `what` is the noun for it.
  [[nodiscard]] uint64_t read_count(
      ValueId id,
      const char* what,
      uint64_t file_offset) const;

  // "tensor 'a.b' <what> in 'archive/data.pkl' [byte N]"
  [[noreturn]] void fail_tensor(
      ErrorKind kind,
      const std::string& what,
      uint64_t file_offset) const;
  // "<what> in 'archive/data.pkl' [byte N]"
  [[noreturn]] void fail(
      ErrorKind kind,
      const std::string& what,
      uint64_t file_offset) const;

 private:
  const PickleTree& tree_;
  const PickleOrigin& origin_;
  std::vector<GlobalMeaning> globals_;  // by global index of tree_
  std::string path_;
  uint64_t name_bytes_ = 0;
  uint64_t name_budget_bytes_;

  // Of check_distinct_keys(), kept for their memory.
  std::vector<std::string_view> strings_;
  std::vector<std::string_view> big_ints_;
  std::vector<int64_t> ints_;
  std::vector<double> floats_;
  std::vector<int64_t> nones_;
};

}  // namespace ckpt_streamer::format
