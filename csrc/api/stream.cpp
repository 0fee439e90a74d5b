// The public C++ interface: thin over ops/, whose types it keeps to itself.
#include "ckpt_streamer/stream.h"

#include <utility>

#include "api/budget.h"
#include "api/handle_value.h"
#include "api/op_limit.h"
#include "ops/copy_under_limit.h"
#include "ops/default_limit.h"
#include "ops/stream_handle.h"

namespace ckpt_streamer {
inline namespace v1 {

using Handle = c10::intrusive_ptr<ops::StreamHandle>;

struct StreamAccess {
  static Stream make(Handle handle) {
    return Stream(std::move(handle));
  }
  static ops::StreamHandle& handle(const Stream& stream) {
    return static_cast<ops::StreamHandle&>(*stream.handle_);
  }
};

namespace {

ops::StreamHandle& handle_of(const Stream& stream) {
  return StreamAccess::handle(stream);
}

}  // namespace

Stream::Stream(c10::intrusive_ptr<c10::intrusive_ptr_target> handle)
    : handle_(std::move(handle)) {}
Stream::Stream(Stream&& other) noexcept = default;
Stream& Stream::operator=(Stream&& other) noexcept = default;
Stream::~Stream() = default;

bool Stream::has_next() {
  return handle_of(*this).has_next();
}

NamedTensor Stream::next() {
  auto [name, tensor] = handle_of(*this).next();
  return {std::move(name), std::move(tensor)};
}

at::Tensor Stream::tensor(const std::string& name) {
  return handle_of(*this).tensor(name);
}

at::Tensor Stream::slice(const std::string& name, int64_t begin, int64_t end) {
  return handle_of(*this).slice(name, begin, end);
}

void Stream::release() {
  handle_of(*this).release();
}

void Stream::reset() {
  handle_of(*this).reset();
}

size_t Stream::size() const {
  return static_cast<size_t>(handle_of(*this).len());
}

StreamStats Stream::stats() {
  const c10::Dict<std::string, int64_t> figures = handle_of(*this).stats();
  const auto figure = [&](const char* name) {
    return static_cast<uint64_t>(figures.at(name));
  };
  return {
      .tensors = figure("tensors"),
      .tensors_yielded = figure("tensors_yielded"),
      .memory_limit_bytes = figure("memory_limit_bytes"),
      .windows_entered = figure("windows_entered"),
      .bytes_streamed = figure("bytes_streamed"),
      .bytes_evicted = figure("bytes_evicted"),
      .bytes_prefetched = figure("bytes_prefetched"),
      .bytes_resident = figure("bytes_resident"),
      .peak_bytes_resident = figure("peak_bytes_resident"),
      .bytes_over_limit = figure("bytes_over_limit"),
      .bytes_written = figure("bytes_written"),
      .not_held = handle_of(*this).not_held(),
      .notes = handle_of(*this).notes()};
}

c10::IValue Stream::to_ivalue() const {
  return Handle::reclaim_copy(&handle_of(*this));
}

Stream Stream::from_ivalue(const c10::IValue& handle) {
  return StreamAccess::make(
      handle_of_value<ops::StreamHandle>(handle, "StreamHandle"));
}

Stream open(const std::string& path, const OpenOptions& options) {
  return StreamAccess::make(
      ops::open(
          path,
          op_limit(options.memory_limit_bytes),
          options.dtype,
          options.verify,
          options.select,
          options.drop_page_cache,
          op_budget(options.budget)));
}

Stream open(const std::vector<std::string>& paths, const OpenOptions& options) {
  return StreamAccess::make(
      ops::open_files(
          paths,
          op_limit(options.memory_limit_bytes),
          options.dtype,
          options.verify,
          options.select,
          options.drop_page_cache,
          op_budget(options.budget)));
}

Stream stream(
    const c10::Dict<std::string, at::Tensor>& tensors,
    const StreamOptions& options) {
  return StreamAccess::make(
      ops::stream_tensors(
          tensors,
          op_limit(options.memory_limit_bytes),
          options.dtype,
          options.drop_page_cache,
          op_budget(options.budget)));
}

at::Tensor& copy_(
    at::Tensor& destination,
    const at::Tensor& source,
    uint64_t memory_limit_bytes,
    bool drop_page_cache) {
  return ops::copy_(
      destination,
      source,
      op_limit(memory_limit_bytes),
      drop_page_cache);
}

uint64_t default_memory_limit_bytes() {
  return static_cast<uint64_t>(ops::default_memory_limit_bytes());
}

}  // namespace v1
}  // namespace ckpt_streamer
