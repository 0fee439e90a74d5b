// Takes a file's pages out of the kernel's cache behind whoever streams it, for
// which a container is charged: those that the stream was the reason to read,
// and none that it is going to need.
//
// Not everything goes at the first try. A page that is still referenced is
// passed over (one that is on its way into a list of the kernel's, is being
// written to disk, or is mapped elsewhere), and what the disk was asked for
// meanwhile comes later: so all that the stream is done with is looked at each
// time, which costs next to nothing where nothing is left. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/byte_range.h"
#include "plan/window.h"
#include "stream/backing_files.h"

namespace ckpt_streamer::stream {

class CacheDropper {
 public:
  CacheDropper();

  // Addresses of file pages whose stream is done with them, until it comes to
  // them again. REQUIRES: they lie in private file mappings of this process.
  void add(std::span<const ByteRange> ranges);

  // Gives back the kernel's copy of what was added, and of what it has read
  // around that, except `kept` and the blocks that it lies in. Pages that
  // anybody maps stay.
  // REQUIRES: as add(). Cost: two system calls for each range added since the
  // last call; for what was added before, one for each of its disjoint ranges,
  // unless they are more than 64.
  void drop(std::span<const ByteRange> kept);

  // The same for all that was ever added, at the end of a stream, and counts
  // what stays; waits up to 14 ms for what is still being read.
  void drop_all();

  // Of what was added, the bytes that drop_all() left in the cache. Of files
  // that the system does not show to this user, none are known.
  [[nodiscard]] uint64_t undropped_bytes() const noexcept {
    return undropped_bytes_;
  }
  // Of what was added, the bytes whose file could not be opened again, counted
  // once.
  [[nodiscard]] uint64_t unreachable_bytes() const noexcept {
    return unreachable_.extent_bytes();
  }

 private:
  // Returns the bytes of the range that stay in the cache, without the kept.
  uint64_t drop_range(const ByteRange& range, std::span<const ByteRange> kept);

  BackingFiles files_;
  plan::Window added_;               // all, as disjoint extents
  plan::Window unreachable_;         // of that, seen so far
  std::vector<ByteRange> recently_;  // added since the last drop
  uint64_t undropped_bytes_ = 0;
};

}  // namespace ckpt_streamer::stream
