#include "ops/other_writers.h"

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>

#include <mutex>
#include <vector>

namespace ckpt_streamer::ops {
namespace {

// The threads that run a parallel region of torch's, the caller included. The
// region is TensorIterator's: at::parallel_for is a template over OpenMP, and
// compiled here it would run on the workers of another OpenMP library.
std::vector<int64_t> threads_of(at::TensorIterator& region) {
  std::vector<int64_t> threads;
  std::mutex mutex;
  region.for_each(
      [&](char**, const int64_t*, int64_t) {
        const std::lock_guard lock(mutex);
        threads.push_back(os::current_thread_id());
      },
      /*grain_size=*/1);
  return threads;
}

}  // namespace

OtherWriters::OtherWriters() = default;
OtherWriters::~OtherWriters() = default;
OtherWriters::OtherWriters(const OtherWriters&) {}

std::vector<int64_t> OtherWriters::intra_op_threads() {
#if AT_PARALLEL_OPENMP
  if (!at::in_parallel_region()) {
    const int64_t count = at::get_num_threads();
    if (region_ == nullptr || region_->numel() != count) {
      at::Tensor elements = at::empty({count}, at::kByte);
      region_ = std::make_unique<at::TensorIterator>(
          at::TensorIterator::nullary_op(elements));
    }
    return threads_of(*region_);
  }
#endif
  return {};
}

os::OtherWriters OtherWriters::operator()() {
  return census_.others_at_rest([this] { return intra_op_threads(); })
             ? os::OtherWriters::kNone
             : os::OtherWriters::kPossible;
}

}  // namespace ckpt_streamer::ops
