#include "ops/copy_under_limit.h"

#include <ATen/ExpandUtils.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/expand.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <vector>

#include "ops/errors.h"
#include "ops/limit_warning.h"
#include "ops/other_writers.h"
#include "ops/piecewise_copy.h"
#include "ops/tensor_memory.h"
#include "os/residency.h"
#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {
namespace {

// Whether something wants to see the calls of this thread: a mode, a tracer, a
// transform. Autocast does not touch copy_.
bool is_watched() {
  const c10::DispatchKeySet usual =
      c10::default_included_set |
      c10::getAutocastRelatedKeySetFromBackend(c10::BackendComponent::CPUBit);
  const c10::DispatchKeySet included =
      c10::impl::tls_local_dispatch_key_set().included_;
  return (included.raw_repr() & ~usual.raw_repr()) != 0;
}

bool concerns_autograd(const at::Tensor& tensor) {
  return (at::GradMode::is_enabled() && tensor.requires_grad()) ||
         tensor._fw_grad(/*level=*/0).defined();
}

// Whether copy_ would do nothing but copy elements, without any error.
bool only_copies(const at::Tensor& destination, const at::Tensor& source) {
  const ByteRange read = memory_of(source).span;
  const ByteRange written = memory_of(destination).span;
  return is_plain(destination) && is_plain(source) && !is_watched() &&
         !concerns_autograd(destination) && !concerns_autograd(source) &&
         (!destination.is_inference() || c10::InferenceMode::is_enabled()) &&
         at::is_expandable_to(source.sizes(), destination.sizes()) &&
         intersect(read, written).empty() &&
         at::has_internal_overlap(destination) != at::MemOverlap::Yes;
}

// False if the source has no memory that can be dropped.
bool copy_large(
    const at::Tensor& destination,
    const at::Tensor& source,
    const stream::Bounds& bounds) {
  const ByteRange span = memory_of(source).span;
  stream::WindowStreamer streamer({span}, bounds, other_threads());
  if (!streamer.owns_part_of(span)) {
    return false;
  }
  if (!destination.is_inference()) {
    destination.unsafeGetTensorImpl()->bump_version();
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  copy_in_pieces(destination, source.expand(destination.sizes()), streamer);
  bool warned = false;
  warn_if_limit_not_held(streamer.figures(), warned);
  return true;
}

}  // namespace

at::Tensor& copy_within(
    at::Tensor& destination,
    const at::Tensor& source,
    const stream::Bounds& bounds) {
  // Its pages: elements that just fit may begin in the middle of one.
  const ByteRange pages =
      round_outward(memory_of(source).span, os::page_size_bytes());
  if (pages.size_bytes() <= bounds.memory_limit_bytes ||
      !only_copies(destination, source) || !with_torch_errors([&] {
        return copy_large(destination, source, bounds);
      })) {
    destination.copy_(source);
  }
  return destination;
}

at::Tensor& copy_(
    at::Tensor& destination,
    const at::Tensor& source,
    int64_t memory_limit_bytes,
    bool drop_page_cache) {
  return copy_within(
      destination,
      source,
      {checked_limit(memory_limit_bytes), drop_page_cache});
}

}  // namespace ckpt_streamer::ops
