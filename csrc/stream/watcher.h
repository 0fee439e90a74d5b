// Gives pages back behind readers that we do not control: the user's own code,
// walking a tensor larger than the limit or tensors of earlier windows.
//
// Of what was read before, it only counts all file pages of the process, until
// they are more than the window that is live can account for; then, and where a
// tensor exceeds the limit, it evicts what is read of any tensor.
//
// A thread of its own looks at the page tables, sleeps for as long as a fast
// reader needs for a part of what is left of the limit, and unmaps what was
// read first as soon as more is resident than a share of the limit; the rest is
// slack for waking late. What it unmaps is read again from the page cache when
// touched: slow, never wrong.
//
// No write is lost: blocks mapped as huge pages are unmapped by the kernel's
// reclaim alone (os/page_out.h), and so are others where the reader is slow.
// Reclaim takes milliseconds for 2 MiB that the page cache holds in small
// pieces, and passes over what is mapped twice: behind a fast reader, and when
// more than three quarters of the limit are resident, such pages are moved away
// instead (os::OtherWriters says what remains there), unless pages of the
// watched ranges were written to within the last second.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/byte_range.h"
#include "os/residency.h"
#include "stream/live_ranges.h"

namespace ckpt_streamer::stream {

struct WatchFigures {
  uint64_t evicted_bytes = 0;
  // The most clean resident bytes seen at a look.
  uint64_t peak_resident_bytes = 0;
  // How far it was ever above the limit and its slack at that moment.
  uint64_t over_limit_bytes = 0;
  // When unmapping pages was refused and more than the limit stayed for it, or
  // page tables could not be read: what stayed then, and the errno; else 0.
  uint64_t undropped_bytes = 0;
  int drop_error = 0;
};

// Not thread-safe. In a child that was forked meanwhile, it begins anew with
// the next call.
class Watcher {
 public:
  explicit Watcher(os::ScanMethod scan_method);
  ~Watcher();
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

  // While it lives, nothing is looked at or unmapped. Waits for what is being
  // done: some hundred microseconds at most.
  class Pause {
   public:
    explicit Pause(Watcher& watcher) noexcept;

   private:
    friend class Watcher;

    std::unique_lock<std::mutex> lock_;
  };

  // Watches the ranges from now on, ascending and disjoint, in private file
  // mappings, until stop(); replaces those watched before. Where there is no
  // further thread, nothing is watched. `slack_bytes`: what may be resident on
  // top of the limit until it is noticed that others than the live ones are
  // read; it is looked for as often as that takes where their faults map single
  // pages. 0: every 5 ms.
  // REQUIRES: no Pause lives. They stay mapped until they are replaced.
  void watch(
      std::vector<ByteRange> ranges,
      uint64_t limit_bytes,
      uint64_t slack_bytes = 0) noexcept;

  // Changes the limits alone.
  // REQUIRES: is_watching(), no Pause lives.
  void set_limit(uint64_t limit_bytes, uint64_t slack_bytes = 0) noexcept;

  // What other streams have live is neither evicted nor counted.
  // REQUIRES: it lives as long as this does; called before the first watch().
  void leave_alone_what_is_live_elsewhere(const LiveRanges& own) noexcept {
    own_live_ranges_ = &own;
  }

  // As os::Residency's: what is evicted need not stay cached.
  // REQUIRES: called before the first watch().
  void need_not_stay_cached() noexcept {
    keeps_cached_ = false;
  }

  // Says which of the ranges may be resident, ascending and disjoint, whole
  // fault blocks: all together no more than the limit. Of the others, what was
  // read before may be read again. Until nothing_is_live(). `mapped_bytes`:
  // what os::Residency says the process had mapped before any of it was. Said
  // before watch(), it spares that the first look.
  // REQUIRES: no Pause lives.
  void set_live(std::vector<ByteRange> live, uint64_t mapped_bytes) noexcept;
  void nothing_is_live() noexcept;

  // Ends the thread. Idempotent.
  void stop() noexcept;

  [[nodiscard]] bool is_watching() noexcept;

  // Whether others than the live ones were read of late, so that it evicts.
  [[nodiscard]] bool is_evicting() noexcept;

  // Since construction.
  [[nodiscard]] WatchFigures figures() noexcept;

 private:
  struct State;  // what the thread and its owner share
  class Lookout;

  void forget_the_parents() noexcept;

  os::ScanMethod scan_method_;
  const LiveRanges* own_live_ranges_ = nullptr;
  bool keeps_cached_ = true;
  std::unique_ptr<State> state_;
  std::thread thread_;
  int64_t owner_process_ = 0;
};

}  // namespace ckpt_streamer::stream
