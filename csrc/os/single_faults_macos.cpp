#include <cerrno>

#include "os/single_faults.h"

namespace ckpt_streamer::os {

bool SingleFaults::are_possible() noexcept {
  return false;
}

SingleFaults::~SingleFaults() = default;

int SingleFaults::begin(const ByteRange&) noexcept {
  return ENOTSUP;
}

void SingleFaults::end(const ByteRange&) noexcept {}

}  // namespace ckpt_streamer::os
