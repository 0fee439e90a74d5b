#include "stream/own_reads.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "test_macros.h"

namespace ckpt_streamer::stream {
namespace {

TEST(no_turn_is_granted_while_one_reads) {
  EXPECT(EvictionTurn().is_granted());
  {
    const OwnReads first;
    const OwnReads second;  // several may read
    EXPECT(!EvictionTurn().is_granted());
  }
  EXPECT(EvictionTurn().is_granted());
}

TEST(a_reader_waits_for_a_turn_that_is_under_way) {
  std::atomic<bool> is_evicting = false;
  std::atomic<int> overlaps = 0;
  std::atomic<bool> is_done = false;
  std::thread watcher([&] {
    while (!is_done) {
      const EvictionTurn turn;
      if (turn.is_granted()) {
        is_evicting = true;
        std::this_thread::sleep_for(std::chrono::microseconds(50));
        is_evicting = false;
      }
    }
  });
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      for (int k = 0; k < 200; ++k) {
        const OwnReads reads;
        overlaps += is_evicting ? 1 : 0;
      }
    });
  }
  for (std::thread& reader : readers) {
    reader.join();
  }
  is_done = true;
  watcher.join();
  EXPECT_EQ(overlaps.load(), 0);
}

}  // namespace
}  // namespace ckpt_streamer::stream
