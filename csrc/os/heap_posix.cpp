#include "os/heap.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>

namespace ckpt_streamer::os {

void fill_small_block_caches() noexcept {
  // What is cut off around a block aligned to 64 bytes, without the 8 that
  // malloc() adds.
  constexpr std::array<size_t, 6> kSizes = {24, 40, 56, 72, 88, 104};
  constexpr size_t kPlaces = 7;
  for (const size_t size : kSizes) {
    // Those that were cached, and as many others, which take their places:
    // volatile, or the compiler sees that nothing is done with them.
    std::array<void* volatile, 2 * kPlaces> blocks{};
    for (void* volatile& block : blocks) {
      block = std::malloc(size);
    }
    std::for_each(blocks.rbegin(), blocks.rend(), [](void* block) {
      std::free(block);
    });
  }
}

}  // namespace ckpt_streamer::os
