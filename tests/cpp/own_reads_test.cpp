#include "stream/own_reads.h"

#include <sys/wait.h>
#include <unistd.h>

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

TEST(a_forked_child_counts_its_own_threads_alone) {
  const EvictionTurn others;
  const OwnReads reads;
  const pid_t child = ::fork();
  if (child == 0) {
    using std::chrono::steady_clock;
    const bool is_granted = EvictionTurn().is_granted();
    // Of some tries: a busy machine may hold up one.
    bool waits = true;
    for (int i = 0; i < 10 && waits; ++i) {
      const auto begin = steady_clock::now();
      const OwnReads own;
      waits = steady_clock::now() - begin >= std::chrono::milliseconds(50);
    }
    ::_exit(is_granted && !waits ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace ckpt_streamer::stream
