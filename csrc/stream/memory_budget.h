// One limit for several streams together.
//
// Each stream of a budget holds a share of it: as many bytes as it may make
// resident. It asks for its share when it makes room for further tensors, and
// plans them within what it is given: no more than half of what the others
// leave, so that there is room for one more, and as much to each stream that
// has been made and holds nothing yet. A tensor that needs more is given it as
// long as an eighth of the budget is left. What a window does not need goes
// back at once, all of it on release.
//
//   I1  The shares together never exceed the limit.
//   I2  A share is raised before anything of it becomes resident, and lowered
//       after what was resident beyond it is gone.
//   I3  Nobody waits for anybody: who finds no room is told so (CheckpointError
//       InvalidArgument) and may try again, as when others have moved on.
//
// Of n streams that go on in turn, each comes to hold 1/(n + 1).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace ckpt_streamer::stream {

// Thread-safe, and takes no lock: a fork in the midst of it leaves the child a
// budget as it was.
class MemoryBudget {
 public:
  // REQUIRES: limit_bytes >= least_bytes().
  explicit MemoryBudget(uint64_t limit_bytes) noexcept
      : limit_bytes_(limit_bytes) {}
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  // Two fault blocks: with less, a limit holds to within those only.
  [[nodiscard]] static uint64_t least_bytes() noexcept;

  [[nodiscard]] uint64_t limit_bytes() const noexcept {
    return limit_bytes_;
  }
  // All shares together.
  [[nodiscard]] uint64_t held_bytes() const noexcept {
    return held_bytes_;
  }

 private:
  friend class BudgetShare;
  const uint64_t limit_bytes_;
  std::atomic<uint64_t> held_bytes_ = 0;
  // Streams that hold nothing and are going to.
  std::atomic<uint64_t> waiting_count_ = 0;
};

// One stream's. Not thread-safe.
class BudgetShare {
 public:
  explicit BudgetShare(std::shared_ptr<MemoryBudget> budget) noexcept;
  // Gives it back.
  ~BudgetShare();
  BudgetShare(const BudgetShare&) = delete;
  BudgetShare& operator=(const BudgetShare&) = delete;

  struct Request {
    uint64_t needed_bytes;  // better not less; it may be all the same
    uint64_t least_bytes;   // an error otherwise
    uint64_t most_bytes;
  };

  // Raises the share to what is given, if that is more, and returns it.
  // THROWS: CheckpointError InvalidArgument, with nothing changed, if the
  // others leave less than request.least_bytes.
  uint64_t take(const Request& request);

  // Lowers the share to that, if it is more.
  void keep(uint64_t share_bytes) noexcept;

  // Gives all of it back; no room is left for this stream until it takes again.
  void leave() noexcept;

  [[nodiscard]] uint64_t bytes() const noexcept {
    return bytes_;
  }

 private:
  void wait(bool waits) noexcept;

  std::shared_ptr<MemoryBudget> budget_;
  uint64_t bytes_ = 0;
  bool waits_ = false;  // is one of the budget's waiting_count_
};

}  // namespace ckpt_streamer::stream
