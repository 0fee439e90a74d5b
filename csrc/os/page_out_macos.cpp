#include <cerrno>

#include "os/page_out.h"

namespace ckpt_streamer::os {

PageOut::~PageOut() = default;

int PageOut::unmap(const ByteRange&, bool) noexcept {
  return ENOTSUP;
}

int PageOut::evict(const ByteRange&) noexcept {
  return ENOTSUP;
}

int PageOut::split(const ByteRange&) noexcept {
  return ENOTSUP;
}

}  // namespace ckpt_streamer::os
