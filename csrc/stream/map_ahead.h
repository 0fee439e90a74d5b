// Maps cached pages ahead of a reader, on a processor that has nothing else to
// do: a reader who comes to a page that is mapped already takes no fault, of
// which there are one for each 2 MiB (3 microseconds) up to one for each 64 KiB
// (1 microsecond), as the page cache holds the file in large or small folios.
//
// A thread of its own does it, from the first begin() on. It holds no lock ever
// (os::WithoutLocks), writes to nothing, runs no user code and takes no
// signals.
//
// Not thread-safe. In a child that was forked meanwhile, it begins anew.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/byte_range.h"

namespace ckpt_streamer::stream {

class MapAhead {
 public:
  MapAhead();
  ~MapAhead();
  MapAhead(const MapAhead&) = delete;
  MapAhead& operator=(const MapAhead&) = delete;

  // Maps the ranges, in this order, from now on until end(), which it does
  // first. Comes back at once. Pages that are not cached are read; the first
  // that cannot be mapped ends it, and so does a system without
  // os::populate_at_once().
  // REQUIRES: whole pages in private file mappings, which stay until end(). (In
  // what is mapped there instead meanwhile, pages may be mapped ahead as well;
  // nothing is written.)
  void begin(std::vector<ByteRange> ranges) noexcept;

  // On return, nothing is mapped any more. Waits for the 2 MiB under way, if
  // any: microseconds where they are cached and the thread has its processor.
  // Idempotent.
  void end() noexcept;

  // The same, and ends the thread.
  void stop() noexcept;

 private:
  struct State;  // what the thread and its owner share

  static void run(State& state) noexcept;
  void forget_the_parents() noexcept;

  std::unique_ptr<State> state_;
  std::thread thread_;
  int64_t owner_process_ = 0;
};

}  // namespace ckpt_streamer::stream
