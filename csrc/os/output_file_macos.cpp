#include <cerrno>

#include "os/output_file.h"

namespace ckpt_streamer::os {

void OutputFile::open_unnamed() {}

// Never called: open_named() gave it one.
int OutputFile::link_unnamed(const std::string&) noexcept {
  return ENOTSUP;
}

void OutputFile::reserve(uint64_t) {}

void OutputFile::start_writing_back(const ByteRange&) noexcept {}

void OutputFile::drop_written(const ByteRange&) noexcept {}

}  // namespace ckpt_streamer::os
