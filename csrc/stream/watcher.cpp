#include "stream/watcher.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <span>
#include <utility>

#include "base/byte_ranges.h"
#include "os/threads.h"
#include "stream/own_reads.h"

namespace ckpt_streamer::stream {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// What a reader on all processors is taken to read: above what was measured.
constexpr double kFastestBytesPerMicrosecond = 96'000;

// The same, of ranges whose faults map single pages, for each processor: above
// what was measured.
constexpr double kFastestByPagesPerMicrosecond = 3'000;

// What reclaim keeps up with where it unmaps pages one by one.
constexpr double kPagedOutPerMicrosecond = 500;

// A block that is still being read is unmapped in vain: what came in the last
// time in which that many blocks are read stays, and for this long at least.
constexpr uint64_t kBlocksInUse = 3;
constexpr auto kLeastAge = microseconds(60);
// How long a look may hold up the owner.
constexpr auto kLongestTurn = microseconds(300);
// Until then, where nothing changes, the next look is timed for a reader that
// begins at full speed.
constexpr auto kRestAfter = seconds(10);
constexpr auto kRest = milliseconds(5);
constexpr auto kLongestBeginning = milliseconds(20);
constexpr nanoseconds kShortestSleep = microseconds(20);
constexpr nanoseconds kShortestQuietSleep = microseconds(200);
// How long after a write no page is moved away.
constexpr auto kQuietAfterWrite = seconds(1);
// How long after tensors of earlier windows were read their pages are evicted.
constexpr auto kQuietAfterReading = seconds(1);
// A full look that takes no longer is as good as one at where the readers are.
constexpr auto kCheapLook = microseconds(60);
constexpr int kMostPartialLooks = 32;
constexpr int kMostSkippedLooks = 16;

// How far ahead of what is resident a look at where the readers are reaches.
constexpr uint64_t kReachBytes = 64 * kMiB;
constexpr uint64_t kPieceBytes = 256 * kMiB;
constexpr size_t kRunsAtOnce = 4096;

// Blocks not mapped as one that are unmapped at one look.
constexpr size_t kMostPagedOut = 1;
// What is moved away at once: so much for the sake of speed, and no more
// because of what others may see meanwhile (os::OtherWriters).
constexpr uint64_t kMovedBytes = 2 * kMiB;
constexpr uint64_t kMovedHullBytes = 64 * kMiB;
// Then it looks again: sooner where a reader of whole tensors may have come to
// blocks that are mapped as one by then, and are given back much faster.
constexpr auto kLongestEviction = microseconds(300);
constexpr auto kLongestSweep = milliseconds(2);

// What one fault may map, or the part of it that is watched.
struct Block {
  ByteRange range;
  uint64_t clean_bytes = 0;
  uint64_t written_bytes = 0;
  bool is_huge = false;   // all of it, mapped as one
  uint8_t fruitless = 0;  // how often it was unmapped and stayed
  Clock::time_point first_seen;
};

}  // namespace

struct Watcher::State {
  std::mutex mutex;
  std::condition_variable changed;
  std::condition_variable begun;
  std::atomic<int> waiting_owners = 0;
  // Guarded by the mutex.
  std::vector<ByteRange> ranges;
  uint64_t limit_bytes = 0;
  uint64_t slack_bytes = 0;
  uint64_t generation = 0;  // of the three above
  std::vector<ByteRange> live;
  uint64_t mapped_before_live = 0;
  uint64_t live_generation = 0;  // of the two above
  // Whether the rest is expected not to be read.
  bool is_rest_quiet = false;
  bool is_resting = false;  // the thread, as a slow look suffices
  bool is_called = false;   // from that
  bool has_begun = false;   // the thread, to look
  bool is_evicting = false;
  bool is_stopped = false;
  WatchFigures figures;
};

// The thread's side.
class Watcher::Lookout {
 public:
  Lookout(
      State& state,
      os::ScanMethod scan_method,
      const LiveRanges* own_live_ranges,
      bool keeps_cached)
      : state_(state),
        own_live_ranges_(own_live_ranges),
        lock_(state.mutex, std::defer_lock),
        residency_(scan_method) {
    if (!keeps_cached) {
      residency_.need_not_stay_cached();
    }
  }

  void run() {
    lock_.lock();
    state_.has_begun = true;
    state_.begun.notify_one();
    while (!state_.is_stopped) {
      if (generation_ != state_.generation) {
        begin_anew();
      }
      const bool is_readable = look_and_evict();
      if (!is_readable) {
        state_.figures.drop_error = residency_.scan_error();
        state_.figures.undropped_bytes = total_bytes(state_.ranges);
        return;
      }
      const nanoseconds sleep = time_to_next_look();
      state_.is_evicting = !is_dormant_until_next_look();
      state_.is_resting = sleep >= kRest;
      state_.changed.wait_for(lock_, sleep, [&] {
        return state_.is_stopped || state_.is_called ||
               generation_ != state_.generation;
      });
      state_.is_resting = false;
      if (std::exchange(state_.is_called, false)) {
        last_activity_ = Clock::now();
      }
    }
  }

 private:
  void begin_anew() {
    generation_ = state_.generation;
    blocks_.clear();
    has_looked_ = false;
    live_generation_ = 0;
    evicts_until_ = {};
    bytes_per_microsecond_ = kFastestBytesPerMicrosecond;
    last_activity_ = last_look_ = Clock::now();
  }

  // False where page tables cannot be read.
  bool look_and_evict() {
    const Clock::time_point now = Clock::now();
    const uint64_t mapped_bytes = residency_.mapped_file_bytes();
    if (is_dormant(now, mapped_bytes) || may_skip(now, mapped_bytes)) {
      return true;
    }
    const bool is_partial = may_look_in_part(mapped_bytes);
    if (!look(is_partial ? where_readers_are() : state_.ranges)) {
      return false;
    }
    if (generation_ != state_.generation) {
      return true;
    }
    if (is_partial) {
      ++partial_looks_;
    } else {
      partial_looks_ = 0;
      full_look_time_ = Clock::now() - now;
      mapped_at_full_look_ = mapped_bytes;
      resident_at_full_look_ = resident_bytes_;
    }
    if (resident_bytes_ > state_.figures.peak_resident_bytes ||
        resident_bytes_ > state_.limit_bytes + state_.slack_bytes +
                              state_.figures.over_limit_bytes) {
      note_peak(is_partial);
    }
    note_what_came(now);
    const uint64_t evicted_before = state_.figures.evicted_bytes;
    if (!is_rest_quiet(now)) {
      error_number_ = 0;
      evict(now);
      // An error is none where the pages went all the same, or had no need to.
      if (error_number_ != 0 && resident_bytes_ > state_.limit_bytes) {
        state_.figures.drop_error = error_number_;
        state_.figures.undropped_bytes = resident_bytes_;
      }
    }
    const bool is_news =
        came_bytes_ > 0 || state_.figures.evicted_bytes > evicted_before;
    looks_in_vain_ = is_news ? 0 : looks_in_vain_ + 1;
    mapped_after_look_ = residency_.mapped_file_bytes();
    return true;
  }

  // Whether what the process has mapped is still what the live window accounts
  // for, as far as that can be told without looking.
  bool is_dormant(Clock::time_point now, uint64_t mapped_bytes) {
    if (!state_.is_rest_quiet || mapped_bytes == 0) {
      return false;
    }
    if (live_generation_ != state_.live_generation) {
      live_generation_ = state_.live_generation;
      mapped_before_live_ = state_.mapped_before_live;
      // Tensors that fit the limit never exceed it, and a look is dear while
      // they are read: the owner waits for it when it drops its window.
      wakes_at_bytes_ = state_.live.empty() ? state_.limit_bytes / 2
                                            : state_.limit_bytes + kMiB / 2;
    }
    if (differ(
            mapped_bytes,
            std::exchange(quiet_mapped_bytes_, mapped_bytes))) {
      last_activity_ = now;
    }
    // Of large tensors, all that is live may be mapped before the next look
    // (stream/map_ahead.h).
    const uint64_t live_bytes = std::max(
        mapped_bytes - std::min(mapped_bytes, mapped_before_live_),
        state_.slack_bytes == 0 ? total_bytes(state_.live) : 0);
    room_bytes_ = wakes_at_bytes_ - std::min(wakes_at_bytes_, live_bytes);
    return now >= evicts_until_ && room_bytes_ > 0;
  }

  // After a look: whether nothing but the live window is resident.
  bool is_rest_quiet(Clock::time_point now) {
    if (!state_.is_rest_quiet) {
      return false;
    }
    uint64_t other_bytes = 0;
    auto live = state_.live.begin();
    for (const Block& block : blocks_) {
      while (live != state_.live.end() && live->end <= block.range.begin) {
        ++live;
      }
      if (live == state_.live.end() || block.range.end <= live->begin) {
        other_bytes += block.clean_bytes;
      }
    }
    // A few blocks: what was mapped from before.
    if (other_bytes > state_.limit_bytes / 16) {
      evicts_until_ = now + kQuietAfterReading;
    }
    if (now < evicts_until_) {
      return false;
    }
    mapped_before_live_ =
        mapped_at_full_look_ - std::min(mapped_at_full_look_, resident_bytes_);
    wakes_at_bytes_ = state_.limit_bytes + kMiB / 2;
    return true;
  }

  // More than what is mapped is known to.
  static bool differ(uint64_t left_bytes, uint64_t right_bytes) {
    return std::max(left_bytes, right_bytes) -
               std::min(left_bytes, right_bytes) >
           kMiB / 16;
  }

  // Nothing has changed since the last look, as far as that can be told.
  bool may_skip(Clock::time_point now, uint64_t mapped_bytes) {
    if (mapped_bytes == 0 || differ(mapped_bytes, mapped_after_look_) ||
        is_above_low() || now - last_activity_ < milliseconds(1) ||
        ++skipped_looks_ > kMostSkippedLooks) {
      skipped_looks_ = 0;
      return false;
    }
    return true;
  }

  bool may_look_in_part(uint64_t mapped_bytes) const {
    if (!has_looked_ || full_look_time_ < kCheapLook || mapped_bytes == 0 ||
        partial_looks_ >= kMostPartialLooks || resident_bytes_ == 0) {
      return false;
    }
    // What was mapped since, and is not where it was looked for.
    const uint64_t elsewhere_limit =
        std::max(kMiB, state_.limit_bytes / 16) +
        std::min(kReachBytes / 8, state_.limit_bytes / 8);
    return mapped_bytes + resident_at_full_look_ <=
           mapped_at_full_look_ + resident_bytes_ + elsewhere_limit;
  }

  std::vector<ByteRange> where_readers_are() const {
    std::vector<ByteRange> near;
    for (const Block& block : blocks_) {
      if (block.clean_bytes == 0 && block.written_bytes == 0) {
        continue;
      }
      const uint64_t begin =
          block.range.begin - std::min(block.range.begin, 4 * kMiB);
      const uint64_t end = block.range.end + kReachBytes;
      if (!near.empty() && begin <= near.back().end) {
        near.back().end = end;
      } else {
        near.push_back({begin, end});
      }
    }
    std::vector<ByteRange> result;
    auto range = state_.ranges.begin();
    for (const ByteRange& part : near) {
      while (range != state_.ranges.end() && range->end <= part.begin) {
        ++range;
      }
      for (auto it = range; it != state_.ranges.end() && it->begin < part.end;
           ++it) {
        result.push_back(intersect(part, *it));
      }
    }
    return result;
  }

  // Finds the blocks with resident pages in the ranges; of those known, what is
  // not in the ranges stays as it was. False where page tables cannot be read.
  bool look(const std::vector<ByteRange>& ranges) {
    seen_.clear();
    const Clock::time_point begun = Clock::now();
    Clock::time_point turn_begun = begun;
    for (const ByteRange& range : ranges) {
      for (uint64_t at = range.begin; at < range.end;) {
        runs_.clear();
        const uint64_t end = residency_.list_runs(
            {at, std::min(range.end, at + kPieceBytes)},
            kRunsAtOnce,
            runs_);
        if (end == at) {
          return false;
        }
        for (const os::PageRun& run : runs_) {
          add_to_blocks(run, range, begun);
        }
        at = end;
        if (state_.waiting_owners > 0 &&
            Clock::now() - turn_begun > kLongestTurn) {
          const uint64_t generation = generation_;
          let_owner_go_first();
          if (generation != state_.generation || state_.is_stopped) {
            return true;
          }
          turn_begun = Clock::now();
        }
      }
    }
    last_look_begun_ = begun;
    take_over_what_is_known(ranges);
    has_looked_ = true;
    return true;
  }

  void let_owner_go_first() {
    lock_.unlock();
    while (state_.waiting_owners > 0) {
      std::this_thread::sleep_for(microseconds(20));
    }
    lock_.lock();
  }

  void add_to_blocks(
      const os::PageRun& run,
      const ByteRange& range,
      Clock::time_point now) {
    const uint64_t block_bytes = os::fault_extent_bytes();
    for (uint64_t at = run.range.begin; at < run.range.end;) {
      const ByteRange block = round_outward({at, at + 1}, block_bytes);
      const ByteRange part = intersect(block, run.range);
      at = part.end;
      const ByteRange watched = intersect(block, range);
      if (seen_.empty() || seen_.back().range != watched) {
        seen_.push_back({.range = watched, .first_seen = now});
      }
      Block& found = seen_.back();
      if (run.is_written) {
        found.written_bytes += part.size_bytes();
        found.is_huge = false;
      } else {
        found.clean_bytes += part.size_bytes();
        found.is_huge = run.is_huge && part == block && watched == block;
      }
    }
  }

  void take_over_what_is_known(const std::vector<ByteRange>& ranges) {
    came_bytes_ = 0;
    // Before they are compared, or what is passed over comes at each look.
    leave_alone_what_is_live_elsewhere(seen_);
    leave_alone_what_is_live_elsewhere(blocks_);
    std::vector<Block> merged;
    merged.reserve(seen_.size() + 16);
    auto known = blocks_.begin();
    auto range = ranges.begin();
    const auto was_looked_at = [&](const Block& block) {
      while (range != ranges.end() && range->end <= block.range.begin) {
        ++range;
      }
      return range != ranges.end() && range->begin < block.range.end;
    };
    for (Block& block : seen_) {
      for (; known != blocks_.end() && known->range.begin < block.range.begin;
           ++known) {
        if (!was_looked_at(*known)) {
          merged.push_back(*known);
        }
      }
      uint64_t known_clean_bytes = 0;
      uint64_t known_written_bytes = 0;
      if (known != blocks_.end() && known->range == block.range) {
        known_clean_bytes = known->clean_bytes;
        known_written_bytes = known->written_bytes;
        block.fruitless = known->fruitless;
        if (known_clean_bytes > 0) {
          block.first_seen = known->first_seen;
        }
        ++known;
      }
      came_bytes_ +=
          block.clean_bytes - std::min(block.clean_bytes, known_clean_bytes);
      if (block.written_bytes > known_written_bytes && has_looked_) {
        last_write_ = last_look_begun_;
        was_written_to_ = true;
      }
      merged.push_back(block);
    }
    for (; known != blocks_.end(); ++known) {
      if (!was_looked_at(*known)) {
        merged.push_back(*known);
      }
    }
    std::swap(blocks_, merged);
    resident_bytes_ = 0;
    for (const Block& block : blocks_) {
      resident_bytes_ += block.clean_bytes;
    }
  }

  void leave_alone_what_is_live_elsewhere(std::vector<Block>& blocks) const {
    if (own_live_ranges_ == nullptr || !own_live_ranges_->has_neighbours()) {
      return;
    }
    for (Block& block : blocks) {
      if (block.clean_bytes > 0 &&
          own_live_ranges_->is_live_elsewhere(block.range)) {
        block.clean_bytes = 0;
      }
    }
  }

  // What is known of the blocks after partial looks was seen at different
  // times: where it is more than the limit, while something else gives back
  // pages, it need not be true.
  void note_peak(bool is_partial) {
    const uint64_t resident_bytes =
        !is_partial || resident_bytes_ <= state_.limit_bytes
            ? resident_bytes_
            : std::min(
                  resident_bytes_,
                  residency_.count_resident(state_.ranges));
    state_.figures.peak_resident_bytes =
        std::max(state_.figures.peak_resident_bytes, resident_bytes);
    const uint64_t allowed_bytes = state_.limit_bytes + state_.slack_bytes;
    state_.figures.over_limit_bytes = std::max(
        state_.figures.over_limit_bytes,
        resident_bytes - std::min(resident_bytes, allowed_bytes));
  }

  void note_what_came(Clock::time_point now) {
    // A mean over some milliseconds: a fault brings a whole block at once.
    constexpr double kSpanMicroseconds = 2000;
    const double elapsed =
        std::chrono::duration<double, std::micro>(now - last_look_).count();
    last_look_ = now;
    bytes_per_microsecond_ = std::min(
        bytes_per_microsecond_ * std::exp(-elapsed / kSpanMicroseconds) +
            static_cast<double>(came_bytes_) / kSpanMicroseconds,
        kFastestBytesPerMicrosecond);
    if (came_bytes_ > 0) {
      last_activity_ = now;
    }
  }

  // What may stay resident. A slow reader leaves time to come back later.
  uint64_t low_bytes() const {
    const uint64_t limit_bytes = state_.limit_bytes;
    const uint64_t least = std::clamp(limit_bytes / 8, 2 * kMiB, 16 * kMiB);
    const auto comes_in_8_ms =
        static_cast<uint64_t>(bytes_per_microsecond_ * 8000);
    return std::clamp(
        limit_bytes - std::min(limit_bytes, comes_in_8_ms),
        std::min(least, limit_bytes / 2),
        limit_bytes / 2);
  }

  Clock::duration least_age() const {
    const uint64_t bytes_in_use = std::min(
        kBlocksInUse * os::fault_extent_bytes(),
        state_.limit_bytes / 4);
    const double in_use_for = static_cast<double>(bytes_in_use) /
                              std::max(bytes_per_microsecond_, 1.0);
    return std::max(kLeastAge, microseconds(static_cast<int64_t>(in_use_for)));
  }

  bool is_above_low() const {
    return resident_bytes_ > low_bytes();
  }

  // Most of the limit is resident.
  bool is_urgent() const {
    return resident_bytes_ > state_.limit_bytes / 4 * 3;
  }

  bool may_move(Clock::time_point now) const {
    return !was_written_to_ || now - last_write_ > kQuietAfterWrite;
  }

  void evict(Clock::time_point now) {
    if (!is_above_low()) {
      return;
    }
    const EvictionTurn turn;
    if (!turn.is_granted()) {
      return;
    }
    const bool is_urgent_now = is_urgent();
    const uint64_t target_bytes = low_bytes() / 2;
    oldest_first_.clear();
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i].clean_bytes > 0) {
        oldest_first_.push_back(i);
      }
    }
    std::stable_sort(
        oldest_first_.begin(),
        oldest_first_.end(),
        [&](size_t left, size_t right) {
          return blocks_[left].first_seen < blocks_[right].first_seen;
        });
    huge_.clear();
    odd_.clear();
    const Clock::duration least_age_now = least_age();
    uint64_t remaining_bytes = resident_bytes_;
    for (const size_t index : oldest_first_) {
      const Block& block = blocks_[index];
      const bool is_young = last_look_begun_ - block.first_seen < least_age_now;
      if (remaining_bytes <= target_bytes ||
          (is_young &&
           (!is_urgent_now || resident_bytes_ <= state_.limit_bytes))) {
        break;
      }
      remaining_bytes -= block.clean_bytes;
      (block.is_huge && block.fruitless < 2 ? huge_ : odd_).push_back(index);
    }
    page_out_huge_blocks();
    const bool is_pressing =
        is_urgent_now || bytes_per_microsecond_ > kPagedOutPerMicrosecond;
    const bool moves = is_pressing && may_move(now);
    const auto end_of_moved =
        std::stable_partition(odd_.begin(), odd_.end(), [&](size_t index) {
          return moves && blocks_[index].written_bytes == 0;
        });
    const auto moved_count =
        static_cast<size_t>(std::distance(odd_.begin(), end_of_moved));
    move_out_blocks(std::span(odd_).first(moved_count));
    size_t paged_out = 0;
    for (const size_t index : std::span(odd_).subspan(moved_count)) {
      if (state_.waiting_owners > 0 || paged_out == kMostPagedOut) {
        return;
      }
      if (blocks_[index].fruitless < 8) {
        ++paged_out;
        page_out(blocks_[index]);
      }
    }
  }

  void page_out_huge_blocks() {
    std::sort(huge_.begin(), huge_.end());
    for (size_t i = 0; i < huge_.size();) {
      ByteRange run = blocks_[huge_[i]].range;
      size_t end = i + 1;
      while (end < huge_.size() && blocks_[huge_[end]].range.begin == run.end &&
             run.size_bytes() < 16 * kMiB) {
        run.end = blocks_[huge_[end]].range.end;
        ++end;
      }
      note_error(
          residency_.page_out({run, /*is_written=*/false, /*is_huge=*/true}));
      for (; i < end; ++i) {
        note_remaining(blocks_[huge_[i]]);
      }
    }
  }

  void page_out(Block& block) {
    const ByteRange range = block.range;
    if (block.written_bytes > 0) {
      note_error(residency_.page_out({&range, 1}).error_number);
    } else {
      runs_.clear();
      residency_.list_runs(range, kRunsAtOnce, runs_);
      for (const os::PageRun& run : runs_) {
        if (!run.is_written) {
          note_error(residency_.page_out(run));
        }
      }
    }
    note_remaining(block);
  }

  // Neighbours together, with what is not resident between them.
  void move_out_blocks(std::span<size_t> indices) {
    // Kernels without single faults may be slow to look at what is moved, holes
    // included (PAGEMAP_SCAN came with them).
    const bool sweeps = state_.slack_bytes > 0;
    const uint64_t most_bytes = sweeps ? kMovedHullBytes : 0;
    const Clock::time_point end =
        Clock::now() + (sweeps ? kLongestSweep : kLongestEviction);
    std::sort(indices.begin(), indices.end());
    auto range = state_.ranges.begin();
    for (size_t i = 0; i < indices.size();) {
      if (state_.waiting_owners > 0 || Clock::now() > end) {
        return;
      }
      const size_t first = i;
      ByteRange hull = blocks_[indices[i]].range;
      uint64_t clean_bytes = blocks_[indices[i]].clean_bytes;
      while (range->end <= hull.begin) {
        ++range;
      }
      for (++i; i < indices.size() && indices[i] == indices[i - 1] + 1; ++i) {
        const Block& next = blocks_[indices[i]];
        clean_bytes += next.clean_bytes;
        if (clean_bytes > kMovedBytes || next.range.end > range->end ||
            next.range.end - hull.begin > most_bytes) {
          break;
        }
        hull.end = next.range.end;
      }
      {
        const os::TensorWrites writes;
        note_error(residency_.move_out(hull));
      }
      const bool are_gone = residency_.count_resident({&hull, 1}) == 0;
      for (const size_t index : indices.subspan(first, i - first)) {
        note_remaining(blocks_[index], are_gone);
      }
    }
  }

  void note_remaining(Block& block, bool is_gone = false) {
    const ByteRange range = block.range;
    const uint64_t remaining_bytes =
        is_gone ? 0 : residency_.count_resident({&range, 1});
    const uint64_t evicted_bytes =
        block.clean_bytes - std::min(block.clean_bytes, remaining_bytes);
    state_.figures.evicted_bytes += evicted_bytes;
    resident_bytes_ += remaining_bytes;
    resident_bytes_ -= block.clean_bytes;
    block.clean_bytes = remaining_bytes;
    if (remaining_bytes == 0) {
      block.fruitless = 0;
    } else {
      block.fruitless =
          static_cast<uint8_t>(std::min(block.fruitless + 1, 200));
    }
  }

  void note_error(int error_number) {
    error_number_ = error_number_ == 0 ? error_number : error_number_;
  }

  // By the fastest reader.
  static nanoseconds time_to_read(
      uint64_t size_bytes,
      double bytes_per_microsecond = kFastestBytesPerMicrosecond) {
    return nanoseconds(
        static_cast<int64_t>(
            static_cast<double>(size_bytes) / bytes_per_microsecond * 1000));
  }

  // Between looks at a number, which are all that most streams need.
  nanoseconds quiet_sleep() const {
    if (state_.slack_bytes == 0 || Clock::now() - last_activity_ > kRestAfter) {
      return std::max<nanoseconds>(time_to_read(room_bytes_), kRest);
    }
    const uint64_t spare_bytes =
        state_.live.empty() ? state_.limit_bytes / 2 : state_.slack_bytes;
    static const double fastest = std::min(
        kFastestByPagesPerMicrosecond *
            std::max(std::thread::hardware_concurrency(), 1U),
        kFastestBytesPerMicrosecond);
    const nanoseconds least = time_to_read(spare_bytes / 4, fastest);
    return std::clamp<nanoseconds>(
        time_to_read(room_bytes_, fastest),
        std::clamp<nanoseconds>(least, kShortestQuietSleep, kRest),
        kRest);
  }

  bool is_dormant_until_next_look() const {
    return state_.is_rest_quiet && Clock::now() >= evicts_until_;
  }

  nanoseconds time_to_next_look() const {
    const uint64_t limit_bytes = state_.limit_bytes;
    if (is_dormant_until_next_look()) {
      return quiet_sleep();
    }
    const nanoseconds until_full =
        time_to_read(limit_bytes - std::min(limit_bytes, resident_bytes_));
    const auto idle_time = last_look_ - last_activity_;
    if (idle_time > kRestAfter) {
      return std::max<nanoseconds>(until_full / 2, kRest);
    }
    const nanoseconds in_time =
        idle_time < milliseconds(1) ? until_full / 4 : until_full / 2;
    // What cannot be evicted is not worth a processor.
    const nanoseconds least = std::min<nanoseconds>(
        kShortestSleep * (1 << std::min(looks_in_vain_, 8)),
        kRest);
    return std::max(
        in_time,
        resident_bytes_ > low_bytes() ? least : kShortestSleep);
  }

  State& state_;
  const LiveRanges* const own_live_ranges_;
  std::unique_lock<std::mutex> lock_;
  os::Residency residency_;
  uint64_t generation_ = 0;
  // Of the last looks, ascending.
  std::vector<Block> blocks_;
  uint64_t resident_bytes_ = 0;  // of them
  uint64_t came_bytes_ = 0;      // from one look to the next
  double bytes_per_microsecond_ = 0;
  bool has_looked_ = false;
  uint64_t live_generation_ = 0;
  uint64_t mapped_before_live_ = 0;
  uint64_t wakes_at_bytes_ = 0;  // as many on top of that
  uint64_t room_bytes_ = 0;      // until then
  uint64_t quiet_mapped_bytes_ = 0;
  Clock::time_point evicts_until_{};
  bool was_written_to_ = false;  // ever
  Clock::time_point last_look_begun_;
  Clock::time_point last_look_;
  Clock::time_point last_activity_;
  Clock::time_point last_write_;
  Clock::duration full_look_time_{};
  uint64_t mapped_at_full_look_ = 0;
  uint64_t resident_at_full_look_ = 0;
  uint64_t mapped_after_look_ = 0;
  int partial_looks_ = 0;
  int skipped_looks_ = 0;
  int looks_in_vain_ = 0;
  int error_number_ = 0;  // of what was tried at a look
  // Kept for their memory.
  std::vector<os::PageRun> runs_;
  std::vector<Block> seen_;
  std::vector<size_t> oldest_first_;
  std::vector<size_t> huge_;
  std::vector<size_t> odd_;
};

Watcher::Watcher(os::ScanMethod scan_method)
    : scan_method_(scan_method), state_(std::make_unique<State>()) {}

Watcher::~Watcher() {
  stop();
}

Watcher::Pause::Pause(Watcher& watcher) noexcept {
  watcher.forget_the_parents();
  if (!watcher.thread_.joinable()) {
    return;
  }
  State& state = *watcher.state_;
  ++state.waiting_owners;
  lock_ = std::unique_lock(state.mutex);
  --state.waiting_owners;
}

void Watcher::watch(
    std::vector<ByteRange> ranges,
    uint64_t limit_bytes,
    uint64_t slack_bytes) noexcept {
  forget_the_parents();
  State& state = *state_;
  {
    const Pause pause(*this);
    std::swap(state.ranges, ranges);
    state.limit_bytes = limit_bytes;
    state.slack_bytes = slack_bytes;
    ++state.generation;
  }
  if (thread_.joinable()) {
    state.changed.notify_one();
    return;
  }
  try {
    thread_ = os::start_thread([&state,
                                method = scan_method_,
                                own_live_ranges = own_live_ranges_,
                                keeps_cached = keeps_cached_] {
      os::be_prompt();
      try {
        Lookout(state, method, own_live_ranges, keeps_cached).run();
      } catch (...) {  // no memory: no longer watched
      }
    });
    owner_process_ = os::current_process_id();
  } catch (...) {
  }
}

void Watcher::set_limit(uint64_t limit_bytes, uint64_t slack_bytes) noexcept {
  const Pause pause(*this);
  state_->limit_bytes = limit_bytes;
  state_->slack_bytes = slack_bytes;
  ++state_->live_generation;
}

void Watcher::set_live(
    std::vector<ByteRange> live,
    uint64_t mapped_bytes) noexcept {
  const Pause pause(*this);
  state_->mapped_before_live = mapped_bytes;
  std::swap(state_->live, live);
  state_->is_rest_quiet = true;
  ++state_->live_generation;
}

void Watcher::nothing_is_live() noexcept {
  {
    Pause pause(*this);
    state_->is_rest_quiet = false;
    if (pause.lock_.owns_lock()) {
      // A new thread may have to wait for a processor as long as a reader needs
      // for 100 MiB: it comes before that one.
      state_->begun.wait_for(pause.lock_, kLongestBeginning, [&] {
        return state_->has_begun;
      });
    }
    if (!state_->is_resting) {
      return;
    }
    state_->is_called = true;
  }
  // The reader may begin at full speed, of which a rest is 150 MB.
  state_->changed.notify_one();
}

void Watcher::stop() noexcept {
  forget_the_parents();
  if (!thread_.joinable()) {
    return;
  }
  {
    const Pause pause(*this);
    state_->is_stopped = true;
    state_->is_rest_quiet = false;
  }
  state_->changed.notify_one();
  thread_.join();
  state_->is_stopped = false;
  state_->has_begun = false;
  state_->is_evicting = false;
}

bool Watcher::is_watching() noexcept {
  forget_the_parents();
  return thread_.joinable();
}

bool Watcher::is_evicting() noexcept {
  const Pause pause(*this);
  return state_->is_evicting;
}

WatchFigures Watcher::figures() noexcept {
  const Pause pause(*this);
  return state_->figures;
}

// The thread stayed with the parent, and may have held the lock when the child
// was made: what they shared is left behind.
void Watcher::forget_the_parents() noexcept {
  if (!thread_.joinable() || owner_process_ == os::current_process_id()) {
    return;
  }
  os::leave_with_parent(std::move(thread_));
  auto fresh = std::make_unique<State>();
  fresh->figures = state_->figures;
  (void)state_.release();
  state_ = std::move(fresh);
}

}  // namespace ckpt_streamer::stream
