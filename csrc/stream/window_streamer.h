// The engine under every stream: which tensors' pages may be resident now, and
// giving the others back. Knows addresses, not tensors.
//
//   IDLE --enter/admit--> LIVE      LIVE --enter/admit--> LIVE
//   LIVE --release-----> IDLE       any  --destroy------> (released)
//
//   I1  The clean file pages that touching the live spans can map never exceed
//       memory_limit_bytes, as long as no single span does (plan/window.h says
//       how they are counted). A large one that is cached may be mapped ahead
//       of its reader (stream/map_ahead.h).
//   I2  A page is dropped when no live span needs it: on entering a window, the
//       pages of the old one go, but for those that the new one starts with.
//   I3  Only pages of the private file mappings that back the spans given at
//       construction are ever dropped, and of those only clean ones: memory
//       elsewhere (heap, shared, anonymous) has no extents here at all.
//   I4  A dropped page is slow, never wrong: it is read from the file again.
//       That holds for pages nobody wrote to; written ones are not dropped.
//       (What a thread may see that writes meanwhile: os::OtherWriters.)
//   I5  release() is idempotent; the destructor releases too, and never throws.
//
//   I6  From watch_if_over_limit() on until release(), a Watcher drops what is
//       read of any span, behind the reader. From the second window on, it does
//       so when it notices that spans of others than the live one are read: in
//       time for the limit where tensors are small, whose windows leave it
//       room, and where a fault in passed windows can be kept to its page
//       (stream/fault_advice.h).
//   I7  Of a MemoryBudget, the limit is the stream's share: taken before a
//       window is cut or a span admitted, held until what was resident of it is
//       gone. Windows are cut one by one then.
//   I8  What another stream of the process has live is not dropped, nor counted
//       here (stream/live_ranges.h); it is that one's.
//
// REQUIRES: the memory of the spans stays mapped while this lives (its owner
// holds the storages). Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/byte_range.h"
#include "os/residency.h"
#include "plan/window.h"
#include "stream/bounds.h"
#include "stream/cache_dropper.h"
#include "stream/fault_advice.h"
#include "stream/live_ranges.h"
#include "stream/map_ahead.h"
#include "stream/memory_budget.h"
#include "stream/read_ahead.h"
#include "stream/watcher.h"

namespace ckpt_streamer::stream {

struct StreamFigures {
  uint64_t memory_limit_bytes = 0;
  // Entered so far, also those entered again.
  uint64_t windows_entered = 0;
  // Clean pages dropped so far, verified by a second look.
  uint64_t evicted_bytes = 0;
  // The most clean resident bytes seen at once, and held bytes with them; seen
  // whenever pages are dropped and whenever they are counted.
  uint64_t peak_resident_bytes = 0;
  // The most clean resident bytes that the watcher saw at once.
  uint64_t peak_watched_bytes = 0;
  // Of a budget: how far it was ever above the share at that moment.
  uint64_t over_share_bytes = 0;
  // Clean resident bytes that stayed when pages were last dropped: refused, or
  // read again by another thread meanwhile.
  uint64_t undropped_bytes = 0;
  // Why: an errno, 0 if none.
  int drop_error = 0;
  // Read from the disk ahead of the reader, in whole blocks; of a file that the
  // kernel had cached, nothing.
  uint64_t prefetched_bytes = 0;
  // With drop_page_cache, of what was streamed: bytes that stayed in the cache
  // all the same, and bytes whose file could not be opened again for that.
  uint64_t undropped_cached_bytes = 0;
  uint64_t unreachable_bytes = 0;
};

// What of a stream is not simply a disk's pages: bytes of its tensors in other
// memory, and of its mappings by the file systems that they are of
// (os::FileSystem).
struct MemoryKinds {
  uint64_t unmapped_bytes = 0;
  uint64_t memory_bytes = 0;
  uint64_t huge_page_bytes = 0;
  uint64_t remote_bytes = 0;
};

[[nodiscard]] inline os::OtherWriters always_possible() noexcept {
  return os::OtherWriters::kPossible;
}

// The process's other threads, as the engine has to know them.
struct OtherThreads {
  // Whether threads that the caller does not know to be at rest may write to
  // the tensors now; asked once for each drop.
  std::function<os::OtherWriters()> writers = always_possible;
  // Runs task(i) for each i below `count`, each once, on the caller and on
  // threads that are at rest, and returns true when all are done; false, and
  // nothing has run, if the caller would be alone. Called only after `writers`
  // said kNone; tasks do not throw. Empty: there are no such threads.
  std::function<bool(size_t count, const std::function<void(size_t)>& task)>
      run_at_once = {};
  // Whether a processor is likely to have nothing to do while the user works on
  // the tensors, as far as this process knows; asked once for a window at most.
  // Empty: there is none.
  std::function<bool()> leave_a_processor = {};
};

class WindowStreamer {
 public:
  // `spans`: for each tensor of the stream, in the order of the stream, the
  // addresses that its elements span; empty for a tensor without memory here.
  // Spans outside private file mappings are looked up now and left alone.
  // THROWS: CheckpointError Io when the process's mappings cannot be read.
  WindowStreamer(
      std::vector<ByteRange> spans,
      const Bounds& bounds,
      OtherThreads other_threads = {},
      os::ScanMethod scan_method = os::ScanMethod::kBest);
  // Releases, if anything was ever live. Asks for no other threads.
  ~WindowStreamer();
  WindowStreamer(const WindowStreamer&) = delete;
  WindowStreamer& operator=(const WindowStreamer&) = delete;

  // The index behind the last span of each window, ascending. Spans outside
  // file mappings count as well: a reader can let go of their tensors in steps.
  // Of a budget: those of the windows entered so far.
  [[nodiscard]] const std::vector<size_t>& window_ends() const noexcept {
    return window_ends_;
  }

  // Of a budget, with the one that may be cut next.
  [[nodiscard]] size_t window_count() const noexcept {
    const bool has_next = window_ends_.empty()
                              ? !spans_.empty()
                              : window_ends_.back() < spans_.size();
    return window_ends_.size() + (has_next ? 1 : 0);
  }

  [[nodiscard]] size_t span_count() const noexcept {
    return spans_.size();
  }

  // Whether a part of the range lies in the mappings that back the spans.
  [[nodiscard]] bool owns_part_of(const ByteRange& range) const noexcept;

  // Never touches the mappings again that a part of the range lies in: for
  // memory that is no longer known to stay mapped.
  void disown(const ByteRange& range);

  // Makes a window the live one: drops what was live before. The first window
  // entered after construction or release also drops what was resident from
  // before the stream. What of it and of the next window is not cached is read
  // ahead from now on.
  // Of a budget, the next window is cut now, within the share that is taken for
  // it; one that was entered before stays as it is.
  // REQUIRES: window < window_ends().size(); of a budget, or the next one, with
  // spans left for it.
  // THROWS: CheckpointError InvalidArgument if the others of the budget leave
  // no room; what was live stays so.
  void enter(size_t window);

  // Of a budget: cuts all windows anew. Otherwise, nothing.
  void plan_anew();

  // If what is live exceeds the limit, has what is resident given back from now
  // on while the user reads it. For a window that is not read in pieces;
  // admit() sees to it by itself.
  void watch_if_over_limit();

  // After a release, while the user may hold tensors and read them again: has
  // that noticed and given back, as if a window without tensors were live.
  void watch_kept();

  // Whether admit() would keep all that is live.
  // REQUIRES: index < the number of spans.
  [[nodiscard]] bool has_room_for(size_t index) const;

  // Adds one span to what is live, after dropping what was if both together
  // would exceed the limit: for tensors read in an order of the caller's own.
  // REQUIRES: index < the number of spans.
  // THROWS: as enter().
  void admit(size_t index);

  // The same for a part of that span: no other of its pages is made resident.
  // I1 holds for parts of up to piece_bytes().
  void admit_part(size_t index, const ByteRange& part);

  // For a span larger than the limit, read in pieces one after the other: makes
  // a part of it the only thing that is live, after dropping what was. I1 holds
  // for pieces of up to piece_bytes(), wherever they begin. An empty piece:
  // nothing is live. What is not cached of it, and of what the spans have
  // behind all pieces so far, is read ahead. REQUIRES: the piece lies in a
  // span. THROWS: as enter().
  void enter_piece(const ByteRange& piece);
  // Of a budget, takes a share if the stream has none. THROWS: as enter().
  [[nodiscard]] uint64_t piece_bytes();

  // What is_over_limit() compares with: the limit, or the share of the moment.
  [[nodiscard]] uint64_t window_limit_bytes() const noexcept {
    return rules_.memory_limit_bytes;
  }

  // Whether what is live exceeds the limit: a span larger than it, with the
  // spans that share its memory.
  [[nodiscard]] bool is_over_limit() const noexcept {
    return live_.extent_bytes() > rules_.memory_limit_bytes;
  }

  // Drops all clean pages of all spans, also those that came back since the
  // last release, and ends reading ahead and watching. What is live has to be
  // entered or admitted again before it is touched, or the limit holds to
  // within two fault blocks only. The share of a budget goes back.
  void release();

  // The same for the last time: the destructor does not look again. Nothing is
  // made live from then on.
  void retire();

  // As release() at the end of the stream, but that tensors which the user
  // keeps are watched from now on, as by watch_kept(); of a budget, an eighth
  // stays for them.
  void end();

  // Bytes that the first `count` spans cover, shared ones once; those outside
  // file mappings count as well.
  // REQUIRES: count <= span_count().
  [[nodiscard]] uint64_t covered_bytes(size_t count) const noexcept {
    return covered_bytes_[count];
  }

  // Bytes that the spans cover outside private file mappings, shared ones once:
  // nothing of them is ever dropped. O(spans).
  [[nodiscard]] uint64_t unmapped_bytes() const;

  // Says how much other memory is held now for the tensors of the stream, as
  // copies of what cannot be used where it is mapped. It is counted with their
  // pages, and is not this class's to give back.
  void note_held(uint64_t byte_count) noexcept {
    held_bytes_ = byte_count;
    peak_held_bytes_ = std::max(peak_held_bytes_, byte_count);
  }

  // Clean resident bytes counted now, exactly, and the held bytes last noted;
  // O(pages).
  [[nodiscard]] uint64_t resident_bytes() noexcept;
  [[nodiscard]] uint64_t written_bytes() noexcept;

  [[nodiscard]] StreamFigures figures() const noexcept;

  // Looked up once. Cost: O(spans), and some system calls for each mapping.
  // THROWS: std::bad_alloc.
  [[nodiscard]] const MemoryKinds& memory_kinds();

  // Checks I1 and I3 against the state; for tests.
  [[nodiscard]] bool invariants_hold() const;

 private:
  struct WindowShare {
    uint64_t bytes;
    uint64_t window_bytes;  // without the room that the window leaves
  };

  void release_with(os::OtherWriters other_writers) noexcept;
  // Drops all that is live except the pages of `next`.
  void drop_live(const ByteRange& next);
  void begin_if_idle();
  // Of a budget; the share is for what is going to be live.
  void take_share(uint64_t needed_bytes, uint64_t least_bytes);
  void take_share_for(const ByteRange& span);
  void plan_window(size_t window);
  void set_limit(uint64_t limit_bytes, uint64_t needed_bytes) noexcept;
  // Watches all spans, from now on.
  void watch_all();
  // What may be resident on top of the windows' limit.
  [[nodiscard]] uint64_t slack_bytes() const noexcept;
  // Lowers the share to the limit that is set.
  void keep_share() noexcept;
  // Says to other streams what is live.
  void publish_live();
  void note_resident(uint64_t resident_bytes) noexcept;
  // The ranges without what is live elsewhere only.
  [[nodiscard]] std::vector<ByteRange> own_parts(
      std::span<const ByteRange> ranges) const;
  void tell_what_is_live();
  // Whether the limit is at stake when tensors of earlier windows are.
  [[nodiscard]] bool may_be_read_again() const noexcept;
  // Of what is live now, faults map as much as they can; of what is not any
  // more, single pages, if that is wanted.
  void lift_faults(std::span<const ByteRange> live) noexcept;
  void limit_faults(std::span<const ByteRange> passed) noexcept;
  // Keeps faults at both edges of a live extent from mapping what is outside.
  void pin_edges(const ByteRange& extent);
  os::DropResult drop(
      std::span<const ByteRange> ranges,
      os::OtherWriters other_writers) noexcept;
  [[nodiscard]] bool are_mapped_as_huge_pages(
      std::span<const ByteRange> ranges);
  // Nothing is dropped if there is no gain.
  std::optional<os::DropResult> drop_at_once(std::span<const ByteRange> ranges);
  // `resident_bytes`: what was clean and resident before.
  void note_drop(
      const os::DropResult& result,
      uint64_t resident_bytes) noexcept;
  void note_drop_error(const os::DropResult& result) noexcept;
  // `kept_bytes`: what was clean and resident and not to be dropped. O(pages)
  // if something stays that is not refused.
  void note_drop_of_live(
      const os::DropResult& result,
      uint64_t kept_bytes) noexcept;
  void note_drop_of_all(const os::DropResult& result) noexcept;
  // Without what is live elsewhere only.
  [[nodiscard]] uint64_t count_own_resident() noexcept;
  // The part of [range) in the mappings that back the spans.
  void append_owned(const ByteRange& range, std::vector<ByteRange>& ranges)
      const;
  void find_all_extents();
  // Empty past the last window.
  [[nodiscard]] std::span<const ByteRange> spans_of_window(
      size_t window) const noexcept;
  // Reads ahead what is live, then as much as is allowed of the ranges: what
  // the stream goes on with, by addresses inside all_extents_. Returns whether
  // all that is cached, as far as is known.
  bool read_ahead(std::span<const ByteRange> next) noexcept;
  // Maps what is live ahead of the reader, if that is worth it.
  void map_ahead() noexcept;
  void note_piece(const ByteRange& piece) noexcept;
  // Of what is live and what comes next, in the order in which it is read.
  [[nodiscard]] std::vector<ByteRange> ranges_to_read(
      std::span<const ByteRange> next) const;
  [[nodiscard]] uint64_t ahead_bytes() const noexcept;
  // Takes what was live out of the kernel's cache, if that is wanted, but for
  // what is live now and those ranges.
  void drop_cached(std::span<const ByteRange> kept) noexcept;
  void drop_all_cached() noexcept;

  // Fixed at construction, in this order; of a budget, but for limits and ends.
  const Bounds bounds_;
  std::vector<ByteRange> spans_;  // in the end, empty where nothing may go
  std::vector<uint64_t> covered_bytes_;  // [span_count() + 1], ascending
  const bool limits_faults_;  // in the windows that the stream is through with
  plan::WindowRules rules_;
  std::vector<size_t> window_ends_;
  std::vector<ByteRange>
      planned_spans_;  // of a budget: all, as they were given
  OtherThreads other_threads_;
  // State.
  std::vector<ByteRange> owned_mappings_;  // ascending, disjoint
  FaultAdvice fault_advice_;               // of them
  std::vector<ByteRange> all_extents_;  // of all spans, inside owned_mappings_
  uint64_t all_extents_bytes_ = 0;
  std::optional<BudgetShare> share_;        // of a budget
  uint64_t limit_bytes_;                    // of the share, or of the stream
  std::vector<WindowShare> window_shares_;  // of a budget, for window_ends_
  std::optional<LiveRanges> live_ranges_;   // if anything is mapped
  os::Residency residency_;
  plan::Window live_;
  uint64_t mapped_before_live_ = 0;  // os::Residency::mapped_file_bytes()
  // Around the pieces since the last empty one, or where those before it ended:
  // some of a copy's pieces are read twice.
  ByteRange pieces_;
  bool is_live_ = false;
  bool was_live_ = false;    // ever
  bool is_refused_ = false;  // a drop, since all was last dropped
  uint64_t held_bytes_ = 0;
  uint64_t peak_held_bytes_ = 0;  // since pages were last dropped
  ReadAhead read_ahead_;
  // If the kernel's copy is to go as well.
  std::optional<CacheDropper> cache_dropper_;
  std::vector<ByteRange> asked_ahead_;  // last, for that
  std::optional<MemoryKinds> memory_kinds_;
  StreamFigures figures_;  // but for what the watcher did
  // Asking it for its figures may find that a fork left it behind.
  mutable Watcher watcher_;
  MapAhead map_ahead_;
};

}  // namespace ckpt_streamer::stream
