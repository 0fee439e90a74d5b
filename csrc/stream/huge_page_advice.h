// What the streams of the process advise the kernel of their mappings: a
// mapping has one advice, the last that anybody gave. A stream by pages
// (plan/window.h) holds its limit only where huge pages are avoided, so they
// are for as long as one lives that wants that; else they are preferred.
#pragma once

#include <span>
#include <vector>

#include "base/byte_range.h"
#include "os/residency.h"

namespace ckpt_streamer::stream {

// One stream's. May be made and destroyed on any thread.
class HugePageAdvice {
 public:
  // REQUIRES: the mappings stay mapped while this lives, or are disowned.
  // Cost: a system call for each.
  // THROWS: std::bad_alloc.
  HugePageAdvice(std::vector<ByteRange> mappings, os::HugePages wanted);
  // What was avoided for this one alone is preferred again, if another that
  // lives wants it.
  ~HugePageAdvice();
  HugePageAdvice(const HugePageAdvice&) = delete;
  HugePageAdvice& operator=(const HugePageAdvice&) = delete;

  // Gives no advice any more of the mappings that a part of the range lies in.
  void disown(const ByteRange& range) noexcept;

 private:
  // Whether another one wants that for a part of the range.
  [[nodiscard]] bool is_wanted_elsewhere(
      os::HugePages wanted,
      const ByteRange& range) const noexcept;

  std::vector<ByteRange> mappings_;
  const os::HugePages wanted_;
};

}  // namespace ckpt_streamer::stream
