#include "ops/default_limit.h"

#include "os/available_memory.h"
#include "plan/default_limit.h"

namespace ckpt_streamer::ops {
namespace {

std::string mebibytes(uint64_t bytes) {
  return std::to_string(bytes >> 20) + " MiB";
}

}  // namespace

std::tuple<int64_t, std::string> explained_default_memory_limit() {
  const auto available = os::available_memory();
  if (!available.has_value()) {
    return {
        static_cast<int64_t>(plan::kLargestDefaultLimitBytes),
        mebibytes(plan::kLargestDefaultLimitBytes) +
            ": the system does not tell what memory is available"};
  }
  const uint64_t limit_bytes = plan::default_limit_bytes(available->bytes);
  return {
      static_cast<int64_t>(limit_bytes),
      mebibytes(limit_bytes) + ": a quarter of the " +
          mebibytes(available->bytes) + " available in " + available->place +
          ", from " + mebibytes(plan::kSmallestDefaultLimitBytes) + " to " +
          mebibytes(plan::kLargestDefaultLimitBytes)};
}

int64_t default_memory_limit_bytes() {
  return std::get<0>(explained_default_memory_limit());
}

}  // namespace ckpt_streamer::ops
