// Keeps watchers from giving back pages while this library reads a mapping.
//
// A piece that is read under a limit has its edges made resident and what is
// beside them dropped: if a watcher dropped the edges as well, the next touch
// would map a whole fault block again, beyond the limit.
#pragma once

namespace ckpt_streamer::stream {

// While one lives, no watcher of the process evicts; they look all the same.
// Several may live at once, on any threads. Construction waits for evictions
// that are under way, at most 50 ms: some microseconds each.
class OwnReads {
 public:
  OwnReads() noexcept;
  ~OwnReads();
  OwnReads(const OwnReads&) = delete;
  OwnReads& operator=(const OwnReads&) = delete;
};

// A watcher's turn to evict; it may be denied.
class EvictionTurn {
 public:
  EvictionTurn() noexcept;
  ~EvictionTurn();
  EvictionTurn(const EvictionTurn&) = delete;
  EvictionTurn& operator=(const EvictionTurn&) = delete;
  [[nodiscard]] bool is_granted() const noexcept {
    return is_granted_;
  }

 private:
  bool is_granted_;
};

}  // namespace ckpt_streamer::stream
