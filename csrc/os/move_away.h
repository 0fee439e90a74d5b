// Dropping clean file pages where reclaim cannot (os/page_out.h), beside
// threads that may write to them. Linux only.
#pragma once

#include <functional>

#include "base/byte_range.h"

namespace ckpt_streamer::os {

// Calls visit(run) for each run of written pages in a range; false if they
// cannot be told from clean ones.
using WrittenScan = std::function<
    bool(const ByteRange& range, const std::function<void(ByteRange)>& visit)>;

// Whether any memory of this process is locked; yes where that cannot be read.
[[nodiscard]] bool has_locked_memory() noexcept;

// Moves the run's pages to where no other thread can reach them, looks at them
// there, merges back byte by byte what was written to meanwhile, and discards
// them. What a thread may see that writes and reads back in between is said at
// OtherWriters. A fork waits until that is done. Returns 0 or an errno: EINVAL
// before Linux 5.13, which moves no file mappings. Pages that could not be
// moved stay where they are.
//
// REQUIRES: whole pages of private file mappings, clean a moment ago; scan does
// not throw.
int move_away(
    const ByteRange& run,
    bool may_be_locked,
    const WrittenScan& scan) noexcept;

}  // namespace ckpt_streamer::os
