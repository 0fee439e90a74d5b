// What the streams of the process advise the kernel of faults in their
// mappings: a mapping has one advice, the last that anybody gave.
//
// A stream by pages (plan/window.h) holds its limit only where huge pages are
// avoided, so they are for as long as one lives that wants that; else they are
// preferred. Of what a stream is through with, faults may be limited to single
// pages: who reads small tensors again, here and there, would make resident up
// to 2 MiB around each.
#pragma once

#include <span>
#include <vector>

#include "base/byte_range.h"
#include "base/byte_ranges.h"
#include "os/residency.h"

namespace ckpt_streamer::stream {

// One stream's. May be made, used and destroyed on any thread.
class FaultAdvice {
 public:
  // REQUIRES: the mappings stay mapped while this lives, or are disowned.
  // Cost: a system call for each.
  // THROWS: std::bad_alloc.
  FaultAdvice(std::vector<ByteRange> mappings, os::HugePages wanted);
  // What was avoided for this one alone is preferred again, if another that
  // lives wants it. What it limited alone is as before.
  ~FaultAdvice();
  FaultAdvice(const FaultAdvice&) = delete;
  FaultAdvice& operator=(const FaultAdvice&) = delete;

  // Limits faults in the ranges to single pages (os/single_faults.h), until
  // they are lifted. Refusals, and no memory, are ignored. Cost: two system
  // calls for each. REQUIRES: the ranges ascend and lie in the mappings.
  void limit_to_pages(std::span<const ByteRange> ranges) noexcept;

  // Of what this one, or any other, has limited of the ranges, faults are as
  // before. Cost: where nobody has limited any, a load.
  void lift(std::span<const ByteRange> ranges) noexcept;

  // The same of all that this one has limited, but for what others have too.
  void lift_all() noexcept;

  // In these ranges alone, huge pages are preferred although this one avoids
  // them, but for those that another one avoids as well; where that was said
  // before, they are avoided again. Of one that prefers them anyway: nothing.
  void prefer_huge_pages_only_in(std::span<const ByteRange> ranges) noexcept;

  // Gives no advice any more of the mappings that a part of the range lies in.
  void disown(const ByteRange& range) noexcept;

 private:
  // Whether another one wants that for a part of the range.
  [[nodiscard]] bool is_wanted_elsewhere(
      os::HugePages wanted,
      const ByteRange& range) const noexcept;
  static void prefer_huge_pages(const ByteRange& range) noexcept;
  // In the kernel alone.
  void lift_limit(const ByteRange& range) const noexcept;

  std::vector<ByteRange> mappings_;
  ByteRangeSet limited_;
  std::vector<ByteRange> exceptions_;  // to what is wanted
  const os::HugePages wanted_;
};

}  // namespace ckpt_streamer::stream
