// What a stream has to keep within.
#pragma once

#include <cstdint>
#include <memory>

#include "stream/memory_budget.h"

namespace ckpt_streamer::stream {

struct Bounds {
  // Implicit: most streams have a limit and nothing else.
  Bounds(uint64_t limit_bytes, bool drops_page_cache = false) noexcept
      : memory_limit_bytes(limit_bytes), drop_page_cache(drops_page_cache) {}

  uint64_t memory_limit_bytes;
  // Whether the limit is for the kernel's copy as well, what is read ahead
  // included: it is dropped behind the reader, for a container is charged for
  // it. The next reader of the file has to wait for the disk then.
  bool drop_page_cache;
  // What the stream shares with others; null if it has the limit to itself.
  std::shared_ptr<MemoryBudget> budget;
  // What the caller holds beside pages, on top of memory_limit_bytes, and is to
  // be in the stream's share.
  uint64_t beside_bytes = 0;
};

}  // namespace ckpt_streamer::stream
