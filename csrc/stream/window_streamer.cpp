#include "stream/window_streamer.h"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>

#include "base/byte_ranges.h"
#include "os/backing_file.h"
#include "os/file_system.h"
#include "os/page_cache.h"
#include "os/single_faults.h"

namespace ckpt_streamer::stream {
namespace {

// In disjoint, ascending ranges.
std::vector<ByteRange>::const_iterator first_ending_behind(
    const std::vector<ByteRange>& ranges,
    uint64_t address) {
  return std::upper_bound(
      ranges.begin(),
      ranges.end(),
      address,
      [](uint64_t at, const ByteRange& range) { return at < range.end; });
}

ByteRange hull_of_all(std::span<const ByteRange> ranges) {
  ByteRange hull;
  for (const ByteRange& range : ranges) {
    hull = hull_of(hull, range);
  }
  return hull;
}

// Empties the spans that do not lie wholly in private file mappings and returns
// the mappings that back the others, ascending.
std::vector<ByteRange> keep_file_backed(
    std::vector<ByteRange>& spans,
    os::ScanMethod scan_method) {
  const std::vector<ByteRange> mappings =
      os::private_file_mappings(hull_of_all(spans), scan_method);
  std::vector<bool> is_owned(mappings.size(), false);
  for (ByteRange& span : spans) {
    if (span.empty()) {
      continue;
    }
    const auto first = first_ending_behind(mappings, span.begin);
    // One file's mapping shows up as several where parts of it were given
    // other flags.
    auto last = first;
    uint64_t covered_end = span.begin;
    while (covered_end < span.end && last != mappings.end() &&
           last->begin <= covered_end) {
      covered_end = last->end;
      ++last;
    }
    if (covered_end < span.end) {
      span = {};
      continue;
    }
    for (auto mapping = first; mapping != last; ++mapping) {
      is_owned[static_cast<size_t>(mapping - mappings.begin())] = true;
    }
  }
  std::vector<ByteRange> owned;
  for (size_t i = 0; i < mappings.size(); ++i) {
    if (is_owned[i]) {
      owned.push_back(mappings[i]);
    }
  }
  return owned;
}

// covered_prefixes() for spans in any order. O(n log n).
std::vector<uint64_t> covered_prefixes_of_any(
    const std::vector<ByteRange>& spans) {
  constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();
  plan::Window covered({kNoLimit, /*block_bytes=*/1, 0});
  std::vector<uint64_t> prefixes(1, 0);
  prefixes.reserve(spans.size() + 1);
  for (const ByteRange& span : spans) {
    covered.add(span);
    prefixes.push_back(covered.extent_bytes());
  }
  return prefixes;
}

// Ascending prefix sums of the spans' bytes; what an earlier span covers is not
// counted again.
std::vector<uint64_t> covered_prefixes(const std::vector<ByteRange>& spans) {
  std::vector<uint64_t> prefixes(1, 0);
  prefixes.reserve(spans.size() + 1);
  // Of spans that ascend, as those of one file do, the last end says it all;
  // the next file's may lie at lower addresses.
  uint64_t last_begin = 0;
  uint64_t covered_end = 0;
  for (const ByteRange& span : spans) {
    if (span.empty()) {
      prefixes.push_back(prefixes.back());
      continue;
    }
    if (span.begin < last_begin) {
      return covered_prefixes_of_any(spans);
    }
    last_begin = span.begin;
    const uint64_t begin = std::max(span.begin, covered_end);
    const uint64_t added = begin < span.end ? span.end - begin : 0;
    covered_end = std::max(covered_end, span.end);
    prefixes.push_back(prefixes.back() + added);
  }
  return prefixes;
}

// All that touching the ranges can make resident: disjoint, ascending.
std::vector<ByteRange> in_fault_blocks(std::span<const ByteRange> ranges) {
  constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();
  plan::Window window({kNoLimit, os::fault_extent_bytes(), 0});
  for (const ByteRange& range : ranges) {
    window.add(range);
  }
  return window.extents();
}

// Tensors of earlier windows can be read again at any time, in any order. Small
// ones bring in much more than themselves then, but where faults map single
// pages; which costs large ones, that bring in little else, most of their
// speed.
bool limits_faults_of(std::span<const ByteRange> spans, const Bounds& bounds) {
  constexpr uint64_t kLeastLimitBytes = uint64_t{16} << 20;
  const uint64_t bytes = total_bytes(spans);
  const auto empty_count =
      std::count_if(spans.begin(), spans.end(), [](const ByteRange& span) {
        return span.empty();
      });
  const uint64_t count = spans.size() - static_cast<uint64_t>(empty_count);
  return bounds.memory_limit_bytes >= kLeastLimitBytes &&
         bytes > bounds.memory_limit_bytes &&
         bytes / count < os::fault_extent_bytes() &&
         os::SingleFaults::are_possible();
}

// What windows leave of the limit for what is read again until that is noticed.
uint64_t slack_bytes_of(uint64_t limit_bytes, bool limits_faults) {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  return limits_faults ? std::min(
                             std::clamp(limit_bytes / 8, 4 * kMiB, 32 * kMiB),
                             limit_bytes / 4)
                       : 0;
}

// That, and for what is read ahead where the kernel's copy counts as well.
uint64_t room_bytes_of(
    uint64_t limit_bytes,
    bool drop_page_cache,
    bool limits_faults) {
  return slack_bytes_of(limit_bytes, limits_faults) +
         (drop_page_cache ? limit_bytes / 4 : 0);
}

plan::WindowRules rules_for(
    std::span<const ByteRange> spans,
    const Bounds& bounds,
    bool limits_faults) {
  // Of a budget, what a stream among others is likely to have.
  const uint64_t limit_bytes = bounds.budget == nullptr
                                   ? bounds.memory_limit_bytes
                                   : bounds.memory_limit_bytes / 4;
  return plan::with_room(
      plan::choose_rules(
          spans,
          limit_bytes,
          os::page_size_bytes(),
          os::fault_extent_bytes()),
      spans,
      room_bytes_of(limit_bytes, bounds.drop_page_cache, limits_faults));
}

}  // namespace

WindowStreamer::WindowStreamer(
    std::vector<ByteRange> spans,
    const Bounds& bounds,
    OtherThreads other_threads,
    os::ScanMethod scan_method)
    : bounds_(bounds),
      spans_(std::move(spans)),
      covered_bytes_(covered_prefixes(spans_)),
      limits_faults_(limits_faults_of(spans_, bounds)),
      rules_(rules_for(spans_, bounds, limits_faults_)),
      window_ends_(
          bounds.budget == nullptr ? plan::plan_windows(spans_, rules_)
                                   : std::vector<size_t>()),
      planned_spans_(
          bounds.budget == nullptr ? std::vector<ByteRange>() : spans_),
      other_threads_(std::move(other_threads)),
      owned_mappings_(keep_file_backed(spans_, scan_method)),
      fault_advice_(
          owned_mappings_,
          rules_.pins_edges() ? os::HugePages::kAvoid : os::HugePages::kPrefer),
      limit_bytes_(bounds.memory_limit_bytes),
      residency_(scan_method),
      live_(rules_),
      watcher_(scan_method) {
  find_all_extents();
  if (bounds.budget != nullptr) {
    if (all_extents_.empty()) {  // nothing that a budget could bound
      rules_.memory_limit_bytes = bounds.memory_limit_bytes;
      window_ends_ = plan::plan_windows(planned_spans_, rules_);
    } else {
      share_.emplace(bounds.budget);
      set_limit(MemoryBudget::least_bytes(), 0);
    }
  }
  if (!all_extents_.empty()) {
    live_ranges_.emplace(hull_of_all(all_extents_));
    watcher_.leave_alone_what_is_live_elsewhere(*live_ranges_);
  }
  if (bounds.drop_page_cache) {
    cache_dropper_.emplace();
    residency_.need_not_stay_cached();
    watcher_.need_not_stay_cached();
  }
  figures_.memory_limit_bytes = bounds.memory_limit_bytes;
}

WindowStreamer::~WindowStreamer() {
  if (was_live_) {
    release_with(os::OtherWriters::kPossible);
  }
}

void WindowStreamer::retire() {
  release();
  was_live_ = figures_.undropped_bytes > 0 || figures_.drop_error != 0;
}

bool WindowStreamer::owns_part_of(const ByteRange& range) const noexcept {
  const auto mapping = first_ending_behind(owned_mappings_, range.begin);
  return mapping != owned_mappings_.end() && mapping->begin < range.end;
}

uint64_t WindowStreamer::unmapped_bytes() const {
  return covered_bytes_.back() - covered_prefixes(spans_).back();
}

void WindowStreamer::disown(const ByteRange& range) {
  const bool is_watched = watcher_.is_watching();
  map_ahead_.end();
  watcher_.stop();
  std::erase_if(owned_mappings_, [&](const ByteRange& mapping) {
    return !intersect(mapping, range).empty();
  });
  fault_advice_.disown(range);
  find_all_extents();
  if (is_watched) {
    watch_all();
  }
}

void WindowStreamer::find_all_extents() {
  all_extents_.clear();
  for (const ByteRange& extent : in_fault_blocks(spans_)) {
    append_owned(extent, all_extents_);
  }
  all_extents_bytes_ = total_bytes(all_extents_);
}

void WindowStreamer::append_owned(
    const ByteRange& range,
    std::vector<ByteRange>& ranges) const {
  auto mapping = first_ending_behind(owned_mappings_, range.begin);
  for (; mapping != owned_mappings_.end() && mapping->begin < range.end;
       ++mapping) {
    ranges.push_back(intersect(range, *mapping));
  }
}

os::DropResult WindowStreamer::drop(
    std::span<const ByteRange> ranges,
    os::OtherWriters other_writers) noexcept {
  const Watcher::Pause pause(watcher_);
  std::vector<ByteRange> free_parts;
  if (live_ranges_.has_value() && live_ranges_->has_neighbours()) {
    try {
      for (const ByteRange& range : ranges) {
        live_ranges_->append_free_parts(range, free_parts);
      }
      ranges = free_parts;
    } catch (...) {  // no memory: they are read from the file again
    }
  }
  if (other_writers == os::OtherWriters::kNone && other_threads_.run_at_once) {
    try {
      if (const auto result = drop_at_once(ranges)) {
        return *result;
      }
    } catch (...) {  // no memory: one after the other
    }
  }
  return residency_.drop_resident(
      ranges,
      other_writers,
      rules_.pins_edges() ? os::LargeFolios::kKeepUnlessWritten
                          : os::LargeFolios::kSplit);
}

// As far as a few looks tell.
bool WindowStreamer::are_mapped_as_huge_pages(
    std::span<const ByteRange> ranges) {
  constexpr uint64_t kLooks = 3;
  const uint64_t step_bytes = total_bytes(ranges) / (kLooks + 1);
  std::vector<os::PageRun> runs;
  uint64_t skipped_bytes = 0;  // of the step under way
  for (const ByteRange& range : ranges) {
    uint64_t at = range.begin;
    while (range.end - at > step_bytes - skipped_bytes) {
      at += step_bytes - skipped_bytes;
      skipped_bytes = 0;
      const uint64_t begin = round_down(at, os::fault_extent_bytes());
      runs.clear();
      residency_.list_runs(
          {begin, begin + os::fault_extent_bytes()},
          /*most_runs=*/1,
          runs);
      if (runs.empty() || !runs.front().is_huge) {
        return false;
      }
    }
    skipped_bytes += range.end - at;
  }
  return true;
}

// Unmapping is bound by what the kernel keeps of each page, in memory that no
// cache has: two threads take down to half the time of one, where there is
// enough of it to outweigh that each interrupts the other to flush its TLB. Of
// huge pages there never is.
std::optional<os::DropResult> WindowStreamer::drop_at_once(
    std::span<const ByteRange> ranges) {
  constexpr uint64_t kSmallestPartBytes = uint64_t{128} << 20;
  constexpr uint64_t kMostParts = 8;
  const uint64_t part_count =
      std::min(total_bytes(ranges) / kSmallestPartBytes, kMostParts);
  if (part_count < 2 || residency_.scan_error() != 0 ||
      are_mapped_as_huge_pages(ranges)) {
    return std::nullopt;
  }
  const uint64_t part_bytes = total_bytes(ranges) / part_count + 1;
  std::vector<std::vector<ByteRange>> parts(1);
  uint64_t room = part_bytes;
  for (ByteRange range : ranges) {
    while (!range.empty()) {
      // Huge pages are left whole.
      const uint64_t end = std::min(
          range.end,
          round_up(range.begin + room, os::fault_extent_bytes()));
      parts.back().push_back({range.begin, end});
      room -= std::min(room, end - range.begin);
      range.begin = end;
      if (room == 0) {
        parts.emplace_back();
        room = part_bytes;
      }
    }
  }
  std::vector<os::DropResult> results(parts.size());
  if (!other_threads_.run_at_once(parts.size(), [&](size_t i) {
        results[i] =
            residency_.drop_resident(parts[i], os::OtherWriters::kNone);
      })) {
    return std::nullopt;
  }
  os::DropResult sum;
  for (const os::DropResult& result : results) {
    sum += result;
  }
  return sum;
}

void WindowStreamer::note_drop(
    const os::DropResult& result,
    uint64_t resident_bytes) noexcept {
  note_resident(std::min(all_extents_bytes_, resident_bytes));
  peak_held_bytes_ = held_bytes_;
  figures_.evicted_bytes +=
      result.found_bytes - std::min(result.found_bytes, result.remaining_bytes);
  note_drop_error(result);
}

void WindowStreamer::note_drop_error(const os::DropResult& result) noexcept {
  if (result.error_number != 0) {
    figures_.drop_error = result.error_number;
    is_refused_ = true;
  }
}

void WindowStreamer::note_drop_of_live(
    const os::DropResult& result,
    uint64_t kept_bytes) noexcept {
  const uint64_t found_bytes = result.found_bytes + kept_bytes;
  const uint64_t left_before = figures_.undropped_bytes;
  if (is_refused_ || result.error_number != 0) {
    // It stays, and to look at all of it each time would be dear. Some of what
    // was left before may be found again.
    figures_.undropped_bytes += result.remaining_bytes;
    note_drop(result, left_before + found_bytes);
  } else if (left_before > 0 || result.remaining_bytes > 0) {
    // Read again meanwhile: it may be found again, or be gone by now.
    const uint64_t left_bytes = count_own_resident();
    figures_.undropped_bytes = left_bytes - std::min(left_bytes, kept_bytes);
    note_drop(
        result,
        left_bytes + result.found_bytes -
            std::min(result.found_bytes, result.remaining_bytes));
  } else {
    note_drop(result, found_bytes);
  }
}

void WindowStreamer::note_drop_of_all(const os::DropResult& result) noexcept {
  is_refused_ = false;
  note_drop_error(result);
  figures_.undropped_bytes = result.remaining_bytes;
}

void WindowStreamer::note_resident(uint64_t resident_bytes) noexcept {
  const uint64_t bytes = resident_bytes + peak_held_bytes_;
  figures_.peak_resident_bytes = std::max(figures_.peak_resident_bytes, bytes);
  if (share_.has_value()) {
    // Raised before anything is dropped for the next window, lowered after.
    const uint64_t share_bytes = share_->bytes();
    figures_.over_share_bytes = std::max(
        figures_.over_share_bytes,
        bytes - std::min(bytes, share_bytes));
  }
}

void WindowStreamer::begin_if_idle() {
  map_ahead_.end();
  if (!is_live_) {
    // What is resident from before the stream would come on top of it. Not
    // recorded as a peak: it was not the stream that made it resident. What was
    // read since a release is.
    const os::DropResult result = drop(all_extents_, other_threads_.writers());
    if (was_live_) {
      note_drop(result, result.found_bytes);
    }
    note_drop_of_all(result);
    is_live_ = true;
    was_live_ = true;
  }
}

void WindowStreamer::drop_live(const ByteRange& next) {
  const os::OtherWriters other_writers = other_threads_.writers();
  // Beside other threads, whole blocks are cheaper to drop than parts.
  const bool keeps =
      !next.empty() &&
      (rules_.pins_edges() || other_writers == os::OtherWriters::kNone);
  const ByteRange kept =
      keeps ? round_outward(next, os::page_size_bytes()) : ByteRange{};
  std::vector<ByteRange> ranges;
  std::vector<ByteRange> kept_ranges;
  for (const ByteRange& extent : in_fault_blocks(live_.extents())) {
    const ByteRange overlap = intersect(extent, kept);
    if (overlap.empty()) {
      append_owned(extent, ranges);
      continue;
    }
    append_owned(overlap, kept_ranges);
    append_owned({extent.begin, overlap.begin}, ranges);
    append_owned({overlap.end, extent.end}, ranges);
  }
  live_.clear();
  fault_advice_.prefer_huge_pages_only_in({});
  publish_live();
  const uint64_t kept_bytes = residency_.count_resident(kept_ranges);
  const os::DropResult result = drop(ranges, other_writers);
  if (cache_dropper_.has_value()) {
    cache_dropper_->add(ranges);
  }
  note_drop_of_live(result, kept_bytes);
  const uint64_t mapped_bytes = residency_.mapped_file_bytes();
  mapped_before_live_ = mapped_bytes - std::min(mapped_bytes, kept_bytes);
}

void WindowStreamer::take_share(uint64_t needed_bytes, uint64_t least_bytes) {
  const uint64_t beside_bytes = bounds_.beside_bytes;
  const uint64_t given_bytes = share_->take(
      {.needed_bytes = needed_bytes + beside_bytes,
       .least_bytes = least_bytes + beside_bytes,
       .most_bytes =
           beside_bytes +
           std::max(bounds_.memory_limit_bytes, MemoryBudget::least_bytes())});
  set_limit(given_bytes - beside_bytes, needed_bytes);
}

void WindowStreamer::take_share_for(const ByteRange& span) {
  const uint64_t extent_bytes =
      round_outward(span, rules_.block_bytes).size_bytes();
  take_share(extent_bytes + rules_.edge_bytes, MemoryBudget::least_bytes());
}

void WindowStreamer::set_limit(
    uint64_t limit_bytes,
    uint64_t needed_bytes) noexcept {
  limit_bytes_ = limit_bytes;
  // As plan::with_room().
  const uint64_t window_bytes = std::max(
      limit_bytes -
          room_bytes_of(limit_bytes, bounds_.drop_page_cache, limits_faults_),
      std::min(limit_bytes, needed_bytes));
  rules_.memory_limit_bytes = window_bytes;
  live_.set_memory_limit(window_bytes);
}

uint64_t WindowStreamer::slack_bytes() const noexcept {
  return std::min(
      slack_bytes_of(limit_bytes_, limits_faults_),
      limit_bytes_ - rules_.memory_limit_bytes);
}

void WindowStreamer::watch_all() {
  watcher_.watch(all_extents_, rules_.memory_limit_bytes, slack_bytes());
}

void WindowStreamer::keep_share() noexcept {
  if (share_.has_value()) {
    share_->keep(limit_bytes_ + bounds_.beside_bytes);
    if (watcher_.is_watching()) {
      watcher_.set_limit(rules_.memory_limit_bytes, slack_bytes());
    }
  }
}

void WindowStreamer::plan_window(size_t window) {
  if (window < window_ends_.size()) {
    const WindowShare& share = window_shares_[window];
    take_share(share.bytes, share.bytes);
    set_limit(share.bytes, share.window_bytes);
    return;
  }
  const size_t begin = window_ends_.empty() ? 0 : window_ends_.back();
  const auto left = std::span<const ByteRange>(planned_spans_).subspan(begin);
  const auto first =
      std::find_if_not(left.begin(), left.end(), [](const ByteRange& span) {
        return span.empty();
      });
  take_share_for(first == left.end() ? ByteRange{} : *first);
  const size_t end = plan::window_end(planned_spans_, begin, rules_);
  if (!cache_dropper_.has_value()) {  // else the rest is for reading ahead
    plan::Window planned(rules_);
    for (size_t i = begin; i < end; ++i) {
      planned.add(spans_[i]);
    }
    const uint64_t needed_bytes = planned.extent_bytes() + rules_.edge_bytes;
    set_limit(
        std::clamp(
            needed_bytes + limit_bytes_ - rules_.memory_limit_bytes,
            MemoryBudget::least_bytes(),
            limit_bytes_),
        needed_bytes);
  }
  window_shares_.push_back({limit_bytes_, rules_.memory_limit_bytes});
  window_ends_.push_back(end);
}

void WindowStreamer::plan_anew() {
  if (share_.has_value()) {
    window_ends_.clear();
    window_shares_.clear();
  }
}

void WindowStreamer::publish_live() {
  if (live_ranges_.has_value()) {
    // What is above the limit is given back behind the reader, by anybody.
    live_ranges_->set(
        is_over_limit() ? std::vector<ByteRange>() : live_.extents());
  }
}

std::vector<ByteRange> WindowStreamer::own_parts(
    std::span<const ByteRange> ranges) const {
  plan::Window own({std::numeric_limits<uint64_t>::max(), 1, 0});
  std::vector<ByteRange> parts;
  for (const ByteRange& range : ranges) {
    live_ranges_->append_free_parts(range, parts);
  }
  for (const ByteRange& extent : in_fault_blocks(live_.extents())) {
    append_owned(extent, parts);
  }
  for (const ByteRange& part : parts) {
    own.add(part);
  }
  return own.extents();
}

void WindowStreamer::enter(size_t window) {
  if (share_.has_value()) {
    plan_window(window);
  }
  ++figures_.windows_entered;
  const bool was_released = !is_live_ && was_live_;
  begin_if_idle();
  pieces_ = {};
  // After a release, what was passed before it is not known any more.
  const std::vector<ByteRange> passed =
      was_released && may_be_read_again() ? all_extents_ : live_.extents();
  const std::span<const ByteRange> spans = spans_of_window(window);
  const auto first =
      std::find_if_not(spans.begin(), spans.end(), [](const ByteRange& span) {
        return span.empty();
      });
  drop_live(first == spans.end() ? ByteRange{} : *first);
  for (const ByteRange& span : spans) {
    live_.add(span);
  }
  keep_share();
  publish_live();
  lift_faults(live_.extents());
  limit_faults(passed);
  // Before the edges are read, so that the disk has more to do than that.
  const bool is_cached = read_ahead(
      share_.has_value() ? std::span(spans_).subspan(window_ends_[window])
                         : spans_of_window(window + 1));
  if (rules_.pins_edges()) {
    for (const ByteRange& extent : live_.extents()) {
      pin_edges(extent);
    }
  } else if (is_cached && !was_released) {
    map_ahead();
  }
}

// In small windows, waking the thread costs as much as the faults. Where others
// than the live tensors are read as well, a reader's pace is the most that the
// watcher keeps up with.
void WindowStreamer::map_ahead() noexcept {
  constexpr uint64_t kLeastBytes = uint64_t{128} << 20;
  if (live_.extent_bytes() < kLeastBytes || is_over_limit() || limits_faults_ ||
      !other_threads_.leave_a_processor || watcher_.is_evicting()) {
    return;
  }
  try {
    std::vector<ByteRange> ranges;
    for (const ByteRange& extent : live_.extents()) {
      append_owned(extent, ranges);
    }
    if (total_bytes(ranges) < kLeastBytes ||
        !other_threads_.leave_a_processor()) {
      return;
    }
    if (watcher_.is_watching()) {
      tell_what_is_live();
    }
    map_ahead_.begin(std::move(ranges));
  } catch (...) {  // no memory: the reader's faults do it
  }
}

std::span<const ByteRange> WindowStreamer::spans_of_window(
    size_t window) const noexcept {
  if (window >= window_ends_.size()) {
    return {};
  }
  const size_t begin = window == 0 ? 0 : window_ends_[window - 1];
  return std::span(spans_).subspan(begin, window_ends_[window] - begin);
}

// The file is read as far as the next window is likely to need it while this
// one is in use, no further: a container is charged for what is cached.
uint64_t WindowStreamer::ahead_bytes() const noexcept {
  constexpr uint64_t kMostAheadBytes = uint64_t{64} << 20;
  if (!cache_dropper_.has_value()) {
    return std::min(kMostAheadBytes, rules_.memory_limit_bytes);
  }
  // What is live leaves that much; the system reads up to two blocks more.
  const uint64_t taken_bytes =
      live_.extent_bytes() + 2 * os::prefetch_block_bytes();
  return std::min(
      kMostAheadBytes,
      limit_bytes_ - std::min(limit_bytes_, taken_bytes));
}

std::vector<ByteRange> WindowStreamer::ranges_to_read(
    std::span<const ByteRange> next) const {
  const uint64_t limit_bytes = rules_.memory_limit_bytes;
  std::vector<ByteRange> ranges;
  for (const ByteRange& extent : live_.extents()) {
    // Of a span above the limit, the beginning.
    append_owned(
        intersect(extent, {extent.begin, extent.begin + limit_bytes}),
        ranges);
  }
  uint64_t left_bytes = ahead_bytes();
  // Neighbours make one range, as far as they ascend.
  ByteRange run;
  for (const ByteRange& span : next) {
    if (run.size_bytes() >= left_bytes) {
      break;
    }
    if (span.empty()) {
      continue;
    }
    if (span.begin < run.begin ||
        span.begin > run.end + os::page_size_bytes()) {
      append_owned(run, ranges);
      left_bytes -= run.size_bytes();
      run = span;
    } else {
      run.end = std::max(run.end, span.end);
    }
  }
  run.end = std::min(run.end, run.begin + left_bytes);
  append_owned(run, ranges);
  return ranges;
}

bool WindowStreamer::read_ahead(std::span<const ByteRange> next) noexcept {
  try {
    std::vector<ByteRange> ranges = ranges_to_read(next);
    drop_cached(ranges);
    const bool is_cached = read_ahead_.request(ranges);
    if (cache_dropper_.has_value()) {
      asked_ahead_ = std::move(ranges);
    }
    return is_cached;
  } catch (...) {  // no memory: a hint that is not given
    return false;
  }
}

void WindowStreamer::drop_cached(std::span<const ByteRange> kept) noexcept {
  if (!cache_dropper_.has_value()) {
    return;
  }
  try {
    std::vector<ByteRange> needed = live_.extents();
    needed.insert(needed.end(), kept.begin(), kept.end());
    cache_dropper_->drop(needed);
    figures_.undropped_cached_bytes = cache_dropper_->undropped_bytes();
    figures_.unreachable_bytes = cache_dropper_->unreachable_bytes();
  } catch (...) {  // no memory: with the next ones
  }
}

void WindowStreamer::drop_all_cached() noexcept {
  if (!cache_dropper_.has_value()) {
    return;
  }
  try {
    std::vector<ByteRange> ranges;
    for (const ByteRange& extent : in_fault_blocks(live_.extents())) {
      append_owned(extent, ranges);
    }
    cache_dropper_->add(ranges);
    cache_dropper_->add(std::exchange(asked_ahead_, {}));
    cache_dropper_->drop_all();
    figures_.undropped_cached_bytes = cache_dropper_->undropped_bytes();
    figures_.unreachable_bytes = cache_dropper_->unreachable_bytes();
  } catch (...) {  // no memory: they stay
  }
}

bool WindowStreamer::has_room_for(size_t index) const {
  return spans_[index].empty() ||
         (is_live_ && live_.fits_resident(spans_[index]) &&
          (!share_.has_value() || share_->bytes() > 0));
}

void WindowStreamer::admit(size_t index) {
  admit_part(index, spans_[index]);
}

void WindowStreamer::admit_part(size_t index, const ByteRange& part) {
  const ByteRange span = intersect(part, spans_[index]);
  if (span.empty()) {
    return;
  }
  if (share_.has_value() &&
      (share_->bytes() == 0 || !live_.fits_resident(span))) {
    take_share_for(span);
  }
  begin_if_idle();
  if (live_.fits_resident(span)) {
    const uint64_t bytes_before = live_.extent_bytes();
    live_.add(span);
    if (live_ranges_.has_value() && live_.extent_bytes() > bytes_before &&
        !is_over_limit()) {
      live_ranges_->add(round_outward(span, rules_.block_bytes));
    }
  } else {
    drop_live(span);
    live_.add(span);
    publish_live();
    drop_cached({});
  }
  keep_share();
  lift_faults({&span, 1});
  if (is_over_limit()) {
    watch_if_over_limit();
  }
  if (rules_.pins_edges()) {
    pin_edges(round_outward(span, rules_.block_bytes));
  }
}

void WindowStreamer::lift_faults(std::span<const ByteRange> live) noexcept {
  try {
    std::vector<ByteRange> ranges;
    for (const ByteRange& range : live) {
      append_owned(round_outward(range, os::fault_extent_bytes()), ranges);
    }
    fault_advice_.lift(ranges);
  } catch (...) {  // no memory: slow to read
  }
}

void WindowStreamer::limit_faults(std::span<const ByteRange> passed) noexcept {
  if (!limits_faults_) {
    return;
  }
  try {
    const std::vector<ByteRange> live = in_fault_blocks(live_.extents());
    std::vector<ByteRange> parts;
    for (const ByteRange& extent : in_fault_blocks(passed)) {
      append_parts_outside(extent, live, parts);
    }
    std::vector<ByteRange> owned_parts;
    for (const ByteRange& part : parts) {
      append_owned(part, owned_parts);
    }
    if (live_ranges_->has_neighbours()) {
      for (const ByteRange& part : std::exchange(owned_parts, {})) {
        live_ranges_->append_free_parts(part, owned_parts);
      }
    }
    fault_advice_.limit_to_pages(owned_parts);
  } catch (...) {  // no memory: what is read again is watched all the same
  }
}

bool WindowStreamer::may_be_read_again() const noexcept {
  return figures_.windows_entered >= 2 &&
         all_extents_bytes_ > rules_.memory_limit_bytes;
}

void WindowStreamer::watch_kept() {
  if (watcher_.is_watching()) {
    tell_what_is_live();
  } else if (may_be_read_again()) {
    tell_what_is_live();
    watch_all();
  }
}

void WindowStreamer::tell_what_is_live() {
  std::vector<ByteRange> live;
  for (const ByteRange& extent : in_fault_blocks(live_.extents())) {
    append_owned(extent, live);
  }
  watcher_.set_live(
      std::move(live),
      live_.empty() ? residency_.mapped_file_bytes() : mapped_before_live_);
}

void WindowStreamer::watch_if_over_limit() {
  if (!is_over_limit()) {
    watch_kept();
    return;
  }
  // What is given back behind a reader is best given back in large blocks.
  std::vector<ByteRange> blocks;
  for (const ByteRange& extent : live_.extents()) {
    const ByteRange inner = {
        round_up(extent.begin, os::fault_extent_bytes()),
        round_down(extent.end, os::fault_extent_bytes())};
    if (!inner.empty()) {
      append_owned(inner, blocks);
    }
  }
  fault_advice_.prefer_huge_pages_only_in(blocks);
  if (!watcher_.is_watching()) {
    watch_all();
  }
  watcher_.nothing_is_live();
}

void WindowStreamer::enter_piece(const ByteRange& piece) {
  if (share_.has_value() && share_->bytes() == 0 && !piece.empty()) {
    take_share(limit_bytes_, limit_bytes_);
  }
  begin_if_idle();
  drop_live(piece);
  live_.add(piece);
  publish_live();
  lift_faults({&piece, 1});
  if (watcher_.is_watching()) {
    tell_what_is_live();
  }
  note_piece(piece);
  if (pieces_.end > 0) {
    std::vector<ByteRange> behind;
    for (const ByteRange& extent : all_extents_) {
      behind.push_back(intersect(
          extent,
          {pieces_.end, std::numeric_limits<uint64_t>::max()}));
    }
    read_ahead(behind);
  }
  if (rules_.pins_edges() && !piece.empty()) {
    pin_edges(round_outward(piece, rules_.block_bytes));
  }
}

void WindowStreamer::note_piece(const ByteRange& piece) noexcept {
  if (piece.empty()) {
    pieces_.begin = pieces_.end;  // the next one begins anew
  } else if (pieces_.empty() || piece.begin <= pieces_.begin) {
    pieces_ = piece;
  } else {
    pieces_.end = std::max(pieces_.end, piece.end);
  }
}

uint64_t WindowStreamer::piece_bytes() {
  if (share_.has_value() && share_->bytes() == 0) {
    take_share(0, MemoryBudget::least_bytes());
  }
  // Wherever it begins, it reaches into two blocks more than it fills.
  const uint64_t edges = 2 * rules_.block_bytes;
  return std::max(
      rules_.memory_limit_bytes - std::min(rules_.memory_limit_bytes, edges),
      os::page_size_bytes());
}

// A fault at an edge of the extent may map the rest of its fault block as well,
// outside the window. So the extent's pages in that block are made resident
// here and those outside are dropped: with every inner page mapped, no further
// fault happens there.
void WindowStreamer::pin_edges(const ByteRange& extent) {
  if (extent.size_bytes() > rules_.memory_limit_bytes) {
    return;  // the limit cannot be held anyway: see figures()
  }
  const uint64_t block_bytes = rules_.edge_bytes;
  const ByteRange first_block =
      round_outward({extent.begin, extent.begin + 1}, block_bytes);
  const ByteRange last_block =
      round_outward({extent.end - 1, extent.end}, block_bytes);
  const std::vector<ByteRange> live = live_.extents();
  for (const ByteRange& block : {first_block, last_block}) {
    std::vector<ByteRange> inside;
    std::vector<ByteRange> outside;
    uint64_t cursor = block.begin;
    for (const ByteRange& kept : live) {
      const ByteRange overlap = intersect(kept, block);
      if (!overlap.empty()) {
        append_owned(overlap, inside);
        append_owned({cursor, overlap.begin}, outside);
        cursor = overlap.end;
      }
    }
    append_owned({cursor, block.end}, outside);
    // What the extent has in the block; all that is live if a drop took it.
    std::vector<ByteRange> missing;
    append_owned(intersect(extent, block), missing);
    while (!missing.empty()) {
      for (const ByteRange& range : missing) {
        residency_.populate(range);
      }
      const os::DropResult result = drop(outside, other_threads_.writers());
      // What remains is found again with the whole block.
      note_drop(result, figures_.undropped_bytes + result.found_bytes);
      // At most once: what has been split is single pages.
      missing = result.has_split ? std::exchange(inside, {})
                                 : std::vector<ByteRange>();
    }
  }
}

void WindowStreamer::release() {
  release_with(other_threads_.writers());
  if (share_.has_value()) {
    share_->keep(0);
  }
}

void WindowStreamer::end() {
  release_with(other_threads_.writers());
  if (may_be_read_again()) {
    limit_faults(all_extents_);
  }
  if (!share_.has_value()) {
    watch_kept();
    return;
  }
  if (share_->bytes() > 0) {
    const uint64_t kept_bytes =
        std::max(MemoryBudget::least_bytes(), bounds_.memory_limit_bytes / 8);
    set_limit(std::min(limit_bytes_, kept_bytes), 0);
    watch_kept();
    keep_share();
  }
  if (!watcher_.is_watching()) {
    share_->leave();
  }
}

void WindowStreamer::release_with(os::OtherWriters other_writers) noexcept {
  map_ahead_.stop();
  watcher_.stop();
  read_ahead_.stop();
  figures_.prefetched_bytes = read_ahead_.prefetched_bytes();
  fault_advice_.lift_all();
  fault_advice_.prefer_huge_pages_only_in({});
  // Before the drop, or two streams that end at once pass over what both had.
  if (live_ranges_.has_value()) {
    live_ranges_->set({});
  }
  const os::DropResult result = drop(all_extents_, other_writers);
  note_drop(result, result.found_bytes);
  note_drop_of_all(result);
  drop_all_cached();
  live_.clear();
  pieces_ = {};
  is_live_ = false;
}

uint64_t WindowStreamer::count_own_resident() noexcept {
  try {
    if (live_ranges_.has_value() && live_ranges_->has_neighbours()) {
      return residency_.count_resident(own_parts(all_extents_));
    }
  } catch (...) {  // no memory
  }
  return residency_.count_resident(all_extents_);
}

uint64_t WindowStreamer::resident_bytes() noexcept {
  const uint64_t bytes = count_own_resident();
  if (is_live_) {
    note_resident(bytes);
  }
  figures_.prefetched_bytes = read_ahead_.prefetched_bytes();
  return bytes + held_bytes_;
}

StreamFigures WindowStreamer::figures() const noexcept {
  StreamFigures figures = figures_;
  const WatchFigures watched = watcher_.figures();
  figures.evicted_bytes += watched.evicted_bytes;
  figures.peak_watched_bytes = watched.peak_resident_bytes;
  figures.peak_resident_bytes =
      std::max(figures.peak_resident_bytes, watched.peak_resident_bytes);
  if (share_.has_value()) {
    figures.over_share_bytes =
        std::max(figures.over_share_bytes, watched.over_limit_bytes);
  }
  if (figures.drop_error == 0) {
    figures.drop_error = watched.drop_error;
    figures.undropped_bytes =
        std::max(figures.undropped_bytes, watched.undropped_bytes);
  }
  return figures;
}

const MemoryKinds& WindowStreamer::memory_kinds() {
  if (memory_kinds_.has_value()) {
    return *memory_kinds_;
  }
  MemoryKinds found;
  found.unmapped_bytes = unmapped_bytes();
  for (const ByteRange& mapping : owned_mappings_) {
    const auto file = os::BackingFile::behind(mapping.begin);
    if (file == nullptr) {
      continue;
    }
    switch (os::file_system_of(file->descriptor())) {
      case os::FileSystem::kDisk:
        break;
      case os::FileSystem::kMemory:
        found.memory_bytes += mapping.size_bytes();
        break;
      case os::FileSystem::kHugePages:
        found.huge_page_bytes += mapping.size_bytes();
        break;
      case os::FileSystem::kRemote:
        found.remote_bytes += mapping.size_bytes();
        break;
    }
  }
  return memory_kinds_.emplace(found);
}

uint64_t WindowStreamer::written_bytes() noexcept {
  return residency_.count_written(all_extents_);
}

bool WindowStreamer::invariants_hold() const {
  const std::vector<ByteRange> extents = live_.extents();
  const bool within_limit =
      live_.extent_bytes() <= rules_.memory_limit_bytes || extents.size() == 1;
  const bool owned = std::all_of(
      all_extents_.begin(),
      all_extents_.end(),
      [this](const ByteRange& range) {
        return std::any_of(
            owned_mappings_.begin(),
            owned_mappings_.end(),
            [&](const ByteRange& mapping) { return mapping.contains(range); });
      });
  return within_limit && owned && (is_live_ || live_.empty());
}

}  // namespace ckpt_streamer::stream
