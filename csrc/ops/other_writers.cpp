#include "ops/other_writers.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>

#include <atomic>
#include <mutex>
#include <vector>

namespace ckpt_streamer::ops {
namespace {

// A forked child has none of its parent's intra-op workers, but torch's OpenMP
// takes them to be there, and waits for them.
const int64_t loading_process = os::current_process_id();

// Runs `body` on the threads of a parallel region of torch's, the caller
// included. The region is TensorIterator's: at::parallel_for is a template over
// OpenMP, and compiled here it would run on the workers of another OpenMP
// library.
template <typename Body>
void run_region(at::TensorIterator& region, Body body) {
  region.for_each(
      [&](char**, const int64_t*, int64_t) { body(); },
      /*grain_size=*/1);
}

}  // namespace

OtherWriters::OtherWriters() = default;
OtherWriters::~OtherWriters() = default;

bool OtherWriters::may_use_workers() {
#if AT_PARALLEL_OPENMP
  return !at::in_parallel_region() &&
         os::current_process_id() == loading_process;
#else
  return false;
#endif
}

std::vector<int64_t> OtherWriters::intra_op_threads() {
  if (!may_use_workers()) {
    return {};
  }
  const int64_t count = at::get_num_threads();
  if (region_ == nullptr || region_->numel() != count) {
    // Not seen by the dispatch modes of whoever calls.
    at::Tensor elements(at::detail::empty_cpu({count}, at::kByte));
    region_ = std::make_unique<at::TensorIterator>(
        at::TensorIterator::nullary_op(elements));
  }
  std::vector<int64_t> threads;
  std::mutex mutex;
  run_region(*region_, [&] {
    const std::lock_guard lock(mutex);
    threads.push_back(os::current_thread_id());
  });
  are_workers_polling_ = threads.size() > 1;
  return threads;
}

os::OtherWriters OtherWriters::look() {
  are_workers_polling_ = false;
  return census_.others_at_rest([this] { return intra_op_threads(); })
             ? os::OtherWriters::kNone
             : os::OtherWriters::kPossible;
}

bool OtherWriters::run_at_once(
    size_t count,
    const std::function<void(size_t)>& task) {
  if (!are_workers_polling_ || !may_use_workers()) {
    return false;
  }
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) {
      task(i);
    }
  };
  run_region(*region_, work);
  return true;
}

stream::OtherThreads other_threads() {
  const auto threads = std::make_shared<OtherWriters>();
  return {
      [threads] { return threads->look(); },
      [threads](size_t count, const std::function<void(size_t)>& task) {
        return threads->run_at_once(count, task);
      },
      [] { return at::get_num_threads() < os::usable_processor_count(); }};
}

}  // namespace ckpt_streamer::ops
