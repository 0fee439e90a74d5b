#include "ops/window_handle.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/errors.h"
#include "ops/limit_warning.h"
#include "ops/other_writers.h"
#include "ops/partial_reads.h"
#include "ops/stream_stats.h"
#include "ops/tensor_memory.h"
#include "os/heap.h"

namespace ckpt_streamer::ops {
namespace {

stream::Bounds without(uint64_t bytes, stream::Bounds bounds) {
  bounds.memory_limit_bytes -= bytes;
  bounds.beside_bytes = bytes;
  return bounds;
}

// What is most likely to be in a cache still when it is used again.
constexpr uint64_t kCachedBytes = uint64_t{4} << 20;

// The part of a limit that is left for converted tensors on their way to
// Python: a lot of them that fits a cache and costs each next to nothing of a
// call.
uint64_t lot_bytes(const stream::Bounds& bounds) {
  return std::min(kCachedBytes, bounds.memory_limit_bytes / 16);
}

// That for memory of results that are gone, until the next is made there: where
// results are large, enough for one of half a small limit in half its bytes.
// What windows need for a limit to be exact, and what streams of a budget need
// to begin, is not taken for it.
uint64_t kept_bytes(const stream::Bounds& bounds, bool makes_large_results) {
  const uint64_t limit_bytes = bounds.memory_limit_bytes;
  const uint64_t lot = lot_bytes(bounds);
  const uint64_t needed_bytes = stream::MemoryBudget::least_bytes() + lot;
  if (!makes_large_results || bounds.budget != nullptr ||
      limit_bytes <= needed_bytes) {
    return lot;
  }
  return std::max(
      lot,
      std::min({kCachedBytes, limit_bytes / 4, limit_bytes - needed_bytes}));
}

bool is_left_to_caller(
    const ContiguousElements& elements,
    const Conversion& conversion) {
  return !elements.requires_grad && conversion.changes(elements.dtype) &&
         is_large(elements.count, elements.dtype);
}

at::Tensor int64_tensor(size_t size) {
  return at::empty({static_cast<int64_t>(size)}, at::kLong);
}

}  // namespace

WindowHandle::WindowHandle(const stream::Bounds& bounds)
    : bounds_(bounds),
      lot_bytes_(0),
      kept_bytes_(0),
      conversion_(std::nullopt) {}

WindowHandle::WindowHandle(
    const stream::Bounds& bounds,
    std::shared_ptr<const CheckpointTensors> checkpoint,
    std::vector<ByteRange> spans,
    std::optional<at::ScalarType> dtype,
    bool makes_large_results)
    : bounds_(bounds),
      checkpoint_(std::move(checkpoint)),
      dtype_(dtype),
      lot_bytes_(dtype.has_value() ? lot_bytes(bounds_) : 0),
      kept_bytes_(
          dtype.has_value() ? kept_bytes(bounds_, makes_large_results) : 0),
      result_memory_(
          dtype.has_value() ? std::make_shared<ResultMemory>(kept_bytes_)
                            : nullptr),
      conversion_(dtype, result_memory_),
      streamer_(
          std::make_unique<stream::WindowStreamer>(
              std::move(spans),
              without(lot_bytes_ + kept_bytes_, bounds_),
              other_threads())),
      is_planned_(true) {}

WindowHandle::~WindowHandle() {
  if (streamer_ != nullptr) {
    disown_moved(*streamer_, holders_.take_moved());
  }
  if (result_memory_ != nullptr) {
    result_memory_->close();
  }
}

c10::intrusive_ptr<Lot> WindowHandle::add(c10::List<at::Tensor> tensors) {
  const std::lock_guard lock(mutex_);
  TORCH_CHECK(!is_planned_, "the windows are planned already");
  auto lot = c10::make_intrusive<Lot>(std::move(tensors));
  const c10::List<at::Tensor>& given = lot->tensors;
  constexpr size_t kFetchedAhead = 8;
  for (size_t i = 0; i < given.size(); ++i) {
    if (i + kFetchedAhead < given.size()) {
      fetch_objects_of(given[i + kFetchedAhead]);
    }
    const at::Tensor& tensor = given[i];
    memory_.push_back(memory_of(tensor));
    holders_.add(tensor, memory_.back().span);
  }
  return lot;
}

void WindowHandle::plan() {
  const std::lock_guard lock(mutex_);
  TORCH_CHECK(!is_planned_, "the windows are planned already");
  is_planned_ = true;
  with_torch_errors([&] {
    const std::vector<size_t> order = stream_order(memory_);
    std::vector<ByteRange> spans;
    spans.reserve(order.size());
    for (const size_t index : order) {
      spans.push_back(memory_[index].span);
    }
    streamer_ = std::make_unique<stream::WindowStreamer>(
        std::move(spans),
        bounds_,
        other_threads());
    if (!std::is_sorted(order.begin(), order.end())) {
      order_.assign(order.begin(), order.end());
    }
  });
  memory_ = {};
  holders_.keep_if(
      [&](const ByteRange& hull) { return streamer_->owns_part_of(hull); });
}

at::Tensor WindowHandle::order() const {
  const std::lock_guard lock(mutex_);
  at::Tensor result = int64_tensor(order_.size());
  std::copy(order_.begin(), order_.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

at::Tensor WindowHandle::window_ends() const {
  const std::lock_guard lock(mutex_);
  check_open();
  const std::vector<size_t>& ends = streamer_->window_ends();
  at::Tensor result = int64_tensor(ends.size());
  std::transform(
      ends.begin(),
      ends.end(),
      result.mutable_data_ptr<int64_t>(),
      [](size_t end) { return static_cast<int64_t>(end); });
  return result;
}

void WindowHandle::check_open() const {
  TORCH_CHECK(streamer_ != nullptr, "the stream is not planned, or closed");
}

void WindowHandle::note_copies() {
  if (streamer_ != nullptr && checkpoint_ != nullptr) {
    streamer_->note_held(checkpoint_->copied_bytes());
  }
}

stream::WindowStreamer& WindowHandle::open_streamer() {
  check_open();
  disown_moved(*streamer_, holders_.take_moved());
  note_copies();
  return *streamer_;
}

int64_t WindowHandle::enter(int64_t window) {
  const std::lock_guard lock(mutex_);
  stream::WindowStreamer& streamer = open_streamer();
  TORCH_CHECK_INDEX(
      window >= 0 && static_cast<size_t>(window) < streamer.window_count(),
      "window ",
      window,
      " is not one of ",
      streamer.window_count());
  check_files();
  with_torch_errors([&] { streamer.enter(static_cast<size_t>(window)); });
  reads_in_pieces_ = conversion_.is_wanted() && streamer.is_over_limit();
  if (!reads_in_pieces_) {
    streamer.watch_if_over_limit();
  }
  warn_if_not_held();
  os::fill_small_block_caches();
  return static_cast<int64_t>(
      streamer.window_ends()[static_cast<size_t>(window)]);
}

void WindowHandle::admit(int64_t position) {
  const std::lock_guard lock(mutex_);
  stream::WindowStreamer& streamer = open_streamer();
  TORCH_CHECK_INDEX(
      position >= 0 && static_cast<size_t>(position) < streamer.span_count(),
      "position ",
      position,
      " is not one of ",
      streamer.span_count());
  with_torch_errors([&] { streamer.admit(static_cast<size_t>(position)); });
  warn_if_not_held();
}

size_t WindowHandle::admit_some(std::span<const size_t> positions) {
  const std::lock_guard lock(mutex_);
  stream::WindowStreamer& streamer = open_streamer();
  check_files();
  size_t count = 0;
  with_torch_errors([&] {
    while (count < positions.size() &&
           (count == 0 || streamer.has_room_for(positions[count]))) {
      streamer.admit(positions[count]);
      ++count;
    }
  });
  warn_if_not_held();
  return count;
}

std::tuple<c10::List<at::Tensor>, c10::List<bool>> WindowHandle::converted(
    size_t begin,
    size_t end,
    const std::function<PlacedTensor(size_t)>& tensor_at,
    const std::function<std::optional<ContiguousElements>(size_t)>&
        elements_at) {
  const std::lock_guard lock(mutex_);
  stream::WindowStreamer& streamer = open_streamer();
  uint64_t bytes = 0;
  c10::List<at::Tensor> lot;
  c10::List<bool> is_left;
  const auto takes = [&](int64_t element_count) {
    bytes += static_cast<uint64_t>(element_count) * c10::elementSize(*dtype_);
    return bytes <= lot_bytes_ || lot.empty();
  };
  for (size_t position = begin; position < end; ++position) {
    const auto elements =
        reads_in_pieces_ ? std::nullopt : elements_at(position);
    if (elements.has_value() && conversion_.takes(*elements)) {
      if (!takes(elements->count)) {
        break;
      }
      lot.push_back(conversion_.of_elements(*elements));
      continue;
    }
    if (elements.has_value() && is_left_to_caller(*elements, conversion_)) {
      is_left.resize(position - begin, false);
      is_left.push_back(true);
      lot.push_back(tensor_at(position).tensor);
      continue;
    }
    const auto [tensor, source_address] = tensor_at(position);
    const bool in_pieces =
        reads_in_pieces_ && conversion_.takes_in_pieces(tensor);
    if (reads_in_pieces_ && !in_pieces) {
      with_torch_errors([&] { streamer.admit(position); });
    }
    if (!conversion_.changes(tensor)) {
      lot.push_back(tensor);
      continue;
    }
    if (!takes(tensor.numel())) {
      break;
    }
    lot.push_back(
        in_pieces ? with_torch_errors([&] {
          return conversion_.in_pieces(tensor, source_address, streamer);
        })
                  : conversion_(tensor, source_address));
  }
  if (!is_left.empty()) {
    is_left.resize(lot.size(), false);
  }
  note_copies();
  warn_if_not_held();
  os::fill_small_block_caches();
  return {std::move(lot), std::move(is_left)};
}

at::Tensor WindowHandle::convert(const at::Tensor& tensor) {
  const std::lock_guard lock(mutex_);
  check_open();
  return with_torch_errors([&] { return conversion_(tensor, /*begin=*/0); });
}

at::Tensor WindowHandle::read_part(
    size_t position,
    const PlacedTensor& whole,
    const PlacedTensor& part,
    Conversion& conversion) {
  const std::lock_guard lock(mutex_);
  stream::WindowStreamer& streamer = open_streamer();
  check_files();
  at::Tensor result =
      ops::read_part(streamer, position, whole, part, conversion);
  note_copies();
  warn_if_not_held();
  return result;
}

void WindowHandle::check_unchanged() const {
  const std::lock_guard lock(mutex_);
  check_files();
}

void WindowHandle::check_files() const {
  if (checkpoint_ != nullptr) {
    with_torch_errors([&] { checkpoint_->check_unchanged(); });
  }
}

int64_t WindowHandle::unmapped_bytes() const {
  const std::lock_guard lock(mutex_);
  check_open();
  return static_cast<int64_t>(streamer_->unmapped_bytes());
}

int64_t WindowHandle::covered_bytes() const {
  const std::lock_guard lock(mutex_);
  check_open();
  return static_cast<int64_t>(
      streamer_->covered_bytes(streamer_->span_count()));
}

void WindowHandle::release() {
  const std::lock_guard lock(mutex_);
  if (streamer_ != nullptr) {
    if (result_memory_ != nullptr) {
      result_memory_->clear();
    }
    open_streamer().release();
    warn_if_not_held();
  }
}

void WindowHandle::close(int64_t yielded_count) {
  // Dies after the lock: a storage's deleter may be anybody's code.
  StorageHolders released;
  const std::lock_guard lock(mutex_);
  if (streamer_ != nullptr) {
    stream::WindowStreamer& streamer = open_streamer();
    closed_streamed_bytes_ = streamed_bytes(yielded_count);
    streamer.retire();
    warn_if_not_held();
    closed_figures_ = figures();
    if (closed_figures_.windows_entered > 0 ||
        closed_figures_.evicted_bytes > 0) {
      closed_memory_kinds_ = streamer.memory_kinds();
    }
    streamer_.reset();
    checkpoint_.reset();
    if (result_memory_ != nullptr) {
      result_memory_->close();
    }
    std::swap(released, holders_);
  }
}

stream::StreamFigures WindowHandle::figures() const {
  stream::StreamFigures figures =
      streamer_ ? streamer_->figures() : closed_figures_;
  figures.memory_limit_bytes = bounds_.memory_limit_bytes;
  return figures;
}

void WindowHandle::warn_if_not_held() {
  warn_if_limit_not_held(figures(), warned_);
}

uint64_t WindowHandle::streamed_bytes(int64_t yielded_count) const {
  TORCH_CHECK_INDEX(
      yielded_count >= 0 &&
          static_cast<size_t>(yielded_count) <= streamer_->span_count(),
      yielded_count,
      " tensors yielded of ",
      streamer_->span_count());
  return streamer_->covered_bytes(static_cast<size_t>(yielded_count));
}

c10::Dict<std::string, int64_t> WindowHandle::stats(int64_t yielded_count) {
  const std::lock_guard lock(mutex_);
  if (streamer_ != nullptr) {
    disown_moved(*streamer_, holders_.take_moved());
  }
  note_copies();
  // Counting may raise the peak, so it comes first.
  const uint64_t resident_bytes = streamer_ ? streamer_->resident_bytes() : 0;
  return stats_of(
      figures(),
      streamer_ ? streamed_bytes(yielded_count) : closed_streamed_bytes_,
      resident_bytes,
      streamer_ ? streamer_->written_bytes() : 0);
}

std::string WindowHandle::not_held() const {
  const std::lock_guard lock(mutex_);
  return ops::not_held(figures());
}

std::string WindowHandle::notes() {
  const std::lock_guard lock(mutex_);
  return ops::notes(
      streamer_ != nullptr ? streamer_->memory_kinds() : closed_memory_kinds_);
}

c10::intrusive_ptr<WindowHandle> make_windows(
    int64_t memory_limit_bytes,
    bool drop_page_cache,
    const OptionalBudget& budget) {
  return c10::make_intrusive<WindowHandle>(
      checked_bounds(memory_limit_bytes, drop_page_cache, budget));
}

}  // namespace ckpt_streamer::ops
