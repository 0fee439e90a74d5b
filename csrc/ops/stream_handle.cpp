#include "ops/stream_handle.h"

#include <algorithm>
#include <utility>

#include "ops/dict_source.h"
#include "ops/errors.h"
#include "ops/file_source.h"
#include "ops/limit_warning.h"
#include "ops/other_writers.h"
#include "ops/partial_reads.h"
#include "ops/stream_stats.h"
#include "ops/tensor_memory.h"
#include "os/heap.h"

namespace ckpt_streamer::ops {
namespace {

// Tied tensors come one after the other, and begin where their like does.
std::vector<bool> find_ties(const std::vector<ByteRange>& spans) {
  std::vector<bool> may_be_tied(spans.size(), false);
  for (size_t i = 1; i < spans.size(); ++i) {
    if (spans[i].begin == spans[i - 1].begin) {
      may_be_tied[i - 1] = may_be_tied[i] = true;
    }
  }
  return may_be_tied;
}

}  // namespace

StreamHandle::StreamHandle(
    std::unique_ptr<TensorSource> source,
    const stream::Bounds& bounds,
    Conversion conversion)
    : StreamHandle(
          source->spans(),
          std::move(source),
          bounds,
          std::move(conversion)) {}

StreamHandle::StreamHandle(
    std::vector<ByteRange> spans,
    std::unique_ptr<TensorSource>&& source,
    const stream::Bounds& bounds,
    Conversion conversion)
    : source_(std::move(source)),
      conversion_(std::move(conversion)),
      may_be_tied_(
          conversion_.is_wanted() ? find_ties(spans) : std::vector<bool>()),
      streamer_(std::move(spans), bounds, other_threads()) {}

StreamHandle::~StreamHandle() {
  disown_moved(streamer_, source_->take_moved());
}

bool StreamHandle::has_next() {
  const std::lock_guard lock(mutex_);
  if (position_ < streamer_.span_count()) {
    return true;
  }
  if (!has_ended_) {
    checked_streamer().end();
    was_released_ = true;
    has_ended_ = true;
    warn_if_not_held();
  }
  // What was written to the file during the last window.
  with_torch_errors([&] { source_->check_unchanged(); });
  return false;
}

std::tuple<std::string, at::Tensor> StreamHandle::next() {
  const std::lock_guard lock(mutex_);
  TORCH_CHECK_INDEX(
      position_ < streamer_.span_count(),
      "next() past the end: all ",
      streamer_.span_count(),
      " tensors have been yielded; ask has_next() first, or reset()");
  return with_torch_errors([&] {
    const std::vector<size_t>& ends = streamer_.window_ends();
    if (window_ == 0 || position_ == ends[window_ - 1]) {
      enter(window_);
      ++window_;
    } else if (was_released_) {
      enter(window_ - 1);
    }
    std::tuple<std::string, at::Tensor> result(
        source_->name(position_),
        tensor_at(position_));
    streamer_.note_held(source_->copied_bytes());
    ++position_;
    const at::Tensor& tensor = std::get<1>(result);
    if (is_large(tensor.numel(), tensor.scalar_type())) {
      os::fill_small_block_caches();
    }
    return result;
  });
}

at::Tensor StreamHandle::tensor_at(size_t position) {
  if (conversion_.is_wanted() && !may_be_tied_[position] && !reads_in_pieces_) {
    const auto elements = source_->elements(position);
    if (elements.has_value() && conversion_.takes(*elements)) {
      return conversion_.of_elements(*elements);
    }
  }
  at::Tensor tensor = source_->tensor(position);
  const bool in_pieces =
      reads_in_pieces_ && conversion_.takes_in_pieces(tensor);
  if (reads_in_pieces_ && !in_pieces) {
    streamer_.admit(position);
  }
  if (!conversion_.changes(tensor)) {
    return tensor;
  }
  const uint64_t begin =
      may_be_tied_[position] ? source_->source_address(position) : 0;
  return in_pieces ? conversion_.in_pieces(tensor, begin, streamer_)
                   : conversion_(tensor, begin);
}

PlacedTensor StreamHandle::placed_tensor(size_t position) {
  return {source_->tensor(position), source_->source_address(position)};
}

at::Tensor StreamHandle::tensor(const std::string& name) {
  const std::lock_guard lock(mutex_);
  return with_torch_errors([&] {
    const size_t position = source_->find(name);
    const PlacedTensor whole = placed_tensor(position);
    return look_up(position, whole, whole);
  });
}

at::Tensor StreamHandle::slice(
    const std::string& name,
    int64_t begin,
    int64_t end) {
  const std::lock_guard lock(mutex_);
  return with_torch_errors([&] {
    const size_t position = source_->find(name);
    const PlacedTensor whole = placed_tensor(position);
    return look_up(position, whole, slice_of(whole, name, begin, end));
  });
}

at::Tensor StreamHandle::look_up(
    size_t position,
    const PlacedTensor& whole,
    const PlacedTensor& part) {
  source_->check_unchanged();
  // Of the stream's own, what it remembers of the last tensor stays.
  Conversion conversion = conversion_;
  at::Tensor result =
      read_part(checked_streamer(), position, whole, part, conversion);
  streamer_.note_held(source_->copied_bytes());
  was_released_ = true;  // what was live may have gone
  has_ended_ = false;
  warn_if_not_held();
  return result;
}

stream::WindowStreamer& StreamHandle::checked_streamer() {
  disown_moved(streamer_, source_->take_moved());
  streamer_.note_held(source_->copied_bytes());
  return streamer_;
}

void StreamHandle::enter(size_t window) {
  source_->check_unchanged();
  checked_streamer().enter(window);
  reads_in_pieces_ = conversion_.is_wanted() && streamer_.is_over_limit();
  if (!reads_in_pieces_) {
    streamer_.watch_if_over_limit();
  }
  was_released_ = false;
  warn_if_not_held();
  os::fill_small_block_caches();
}

void StreamHandle::release() {
  const std::lock_guard lock(mutex_);
  release_locked();
}

void StreamHandle::reset() {
  const std::lock_guard lock(mutex_);
  release_locked();
  streamer_.plan_anew();
  conversion_.forget();
  has_ended_ = false;
  position_ = 0;
  window_ = 0;
}

int64_t StreamHandle::len() const {
  return static_cast<int64_t>(streamer_.span_count());
}

int64_t StreamHandle::bytes_streamed() {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(streamer_.covered_bytes(position_));
}

int64_t StreamHandle::bytes_evicted() {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(streamer_.figures().evicted_bytes);
}

int64_t StreamHandle::bytes_resident() {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(checked_streamer().resident_bytes());
}

int64_t StreamHandle::peak_bytes_resident() {
  const std::lock_guard lock(mutex_);
  (void)checked_streamer().resident_bytes();  // may be a new peak
  return static_cast<int64_t>(streamer_.figures().peak_resident_bytes);
}

c10::Dict<std::string, int64_t> StreamHandle::stats() {
  const std::lock_guard lock(mutex_);
  const uint64_t resident_bytes = checked_streamer().resident_bytes();
  c10::Dict<std::string, int64_t> stats = stats_of(
      streamer_.figures(),
      streamer_.covered_bytes(position_),
      resident_bytes,
      streamer_.written_bytes());
  stats.insert("tensors", len());
  stats.insert("tensors_yielded", static_cast<int64_t>(position_));
  return stats;
}

std::string StreamHandle::not_held() {
  const std::lock_guard lock(mutex_);
  return ops::not_held(streamer_.figures());
}

std::string StreamHandle::notes() {
  const std::lock_guard lock(mutex_);
  return ops::notes(checked_streamer().memory_kinds());
}

void StreamHandle::release_locked() {
  checked_streamer().release();
  was_released_ = true;
  warn_if_not_held();
}

void StreamHandle::warn_if_not_held() {
  warn_if_limit_not_held(streamer_.figures(), warned_);
}

c10::intrusive_ptr<StreamHandle> open(
    const std::string& path,
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype,
    bool verify,
    const std::optional<std::vector<std::string>>& select,
    bool drop_page_cache,
    const OptionalBudget& budget) {
  // Checked before any I/O.
  const stream::Bounds bounds =
      checked_bounds(memory_limit_bytes, drop_page_cache, budget);
  Conversion conversion(dtype);
  return with_torch_errors([&] {
    return c10::make_intrusive<StreamHandle>(
        std::make_unique<FileSource>(
            std::make_shared<const CheckpointTensors>(
                path,
                bounds.memory_limit_bytes,
                verify ? Verify::kOn : Verify::kOff),
            select),
        bounds,
        std::move(conversion));
  });
}

c10::intrusive_ptr<StreamHandle> open_files(
    const std::vector<std::string>& paths,
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype,
    bool verify,
    const std::optional<std::vector<std::string>>& select,
    bool drop_page_cache,
    const OptionalBudget& budget) {
  // Checked before any I/O.
  const stream::Bounds bounds =
      checked_bounds(memory_limit_bytes, drop_page_cache, budget);
  Conversion conversion(dtype);
  return with_torch_errors([&] {
    return c10::make_intrusive<StreamHandle>(
        std::make_unique<FileSource>(
            std::make_shared<const CheckpointTensors>(
                std::span(paths),
                bounds.memory_limit_bytes,
                verify ? Verify::kOn : Verify::kOff),
            select),
        bounds,
        std::move(conversion));
  });
}

c10::intrusive_ptr<StreamHandle> stream_tensors(
    const c10::Dict<std::string, at::Tensor>& tensors,
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype,
    bool drop_page_cache,
    const OptionalBudget& budget) {
  const stream::Bounds bounds =
      checked_bounds(memory_limit_bytes, drop_page_cache, budget);
  return with_torch_errors([&] {
    return c10::make_intrusive<StreamHandle>(
        std::make_unique<DictSource>(tensors),
        bounds,
        Conversion(dtype));
  });
}

}  // namespace ckpt_streamer::ops
