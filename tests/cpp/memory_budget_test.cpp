#include "stream/memory_budget.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "stream/window_streamer.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::stream {
namespace {

using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kFileSize = 48 * kMiB;

BudgetShare::Request request(uint64_t needed_bytes) {
  return {needed_bytes, MemoryBudget::least_bytes(), ~uint64_t{0} / 2};
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const CheckpointError& error) {
    EXPECT(error.kind() == ErrorKind::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(a_share_is_half_of_what_the_others_leave) {
  const auto budget = std::make_shared<MemoryBudget>(64 * kMiB);
  BudgetShare one(budget);
  EXPECT_EQ(one.take(request(0)), 32 * kMiB);
  {
    BudgetShare two(budget);
    EXPECT_EQ(two.take(request(0)), 16 * kMiB);
    EXPECT_EQ(budget->held_bytes(), 48 * kMiB);
    EXPECT_EQ(one.take(request(0)), 24 * kMiB);
    EXPECT_EQ(one.bytes(), 32 * kMiB);  // until what it has is gone
    one.keep(24 * kMiB);
    EXPECT_EQ(two.take(request(0)), 20 * kMiB);
    EXPECT_EQ(budget->held_bytes(), 44 * kMiB);
  }
  EXPECT_EQ(budget->held_bytes(), 24 * kMiB);
  one.keep(0);
  EXPECT_EQ(budget->held_bytes(), uint64_t{0});
}

TEST(streams_that_wait_for_their_share_are_left_one) {
  const auto budget = std::make_shared<MemoryBudget>(64 * kMiB);
  std::vector<std::unique_ptr<BudgetShare>> shares;
  for (int i = 0; i < 8; ++i) {
    shares.push_back(std::make_unique<BudgetShare>(budget));
  }
  for (const auto& share : shares) {
    EXPECT(share->take(request(40 * kMiB)) >= MemoryBudget::least_bytes());
  }
  EXPECT(budget->held_bytes() <= 64 * kMiB);
  shares[0]->leave();
  shares[0]->leave();  // waits no more
  shares[1]->keep(0);
  BudgetShare more(budget);
  const uint64_t free_bytes = 64 * kMiB - budget->held_bytes();
  EXPECT_EQ(more.take(request(0)), free_bytes / 2);
}

TEST(a_large_tensor_is_given_what_it_needs) {
  const auto budget = std::make_shared<MemoryBudget>(64 * kMiB);
  BudgetShare one(budget);
  EXPECT_EQ(one.take(request(56 * kMiB)), 56 * kMiB);
  one.keep(0);
  EXPECT_EQ(one.take(request(57 * kMiB)), 32 * kMiB);
  EXPECT_EQ(one.take({40 * kMiB, 4 * kMiB, 8 * kMiB}), 8 * kMiB);
}

TEST(a_budget_without_room_says_so) {
  const auto budget = std::make_shared<MemoryBudget>(8 * kMiB);
  BudgetShare one(budget);
  BudgetShare two(budget);
  one.take(request(0));
  two.take(request(0));
  BudgetShare three(budget);
  EXPECT_EQ(
      refusal([&] { three.take(request(0)); }),
      std::string(
          "the memory budget of 8388608 bytes has 0 left, expected "
          "4194304 for a further stream: the others hold the rest "
          "until they go on to their next tensors, end, or are "
          "released"));
  EXPECT_EQ(three.bytes(), uint64_t{0});
  one.keep(0);
  EXPECT_EQ(three.take(request(0)), 4 * kMiB);
}

TEST(shares_of_threads_never_exceed_the_limit) {
  constexpr uint64_t kLimit = 64 * kMiB;
  const auto budget = std::make_shared<MemoryBudget>(kLimit);
  std::atomic<uint64_t> held = 0;
  std::atomic<bool> was_exceeded = false;
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&, seed] {
      BudgetShare share(budget);
      uint64_t mine = 0;
      for (uint64_t i = 0; i < 20000; ++i) {
        const uint64_t needed = (seed * i * 7919) % (70 * kMiB);
        if (i % 5 == 4) {
          held -= mine;
          mine = 0;
          share.keep(0);
          continue;
        }
        if (!refusal([&] { share.take(request(needed)); }).empty()) {
          continue;
        }
        held += share.bytes() - mine;
        mine = share.bytes();
        was_exceeded = was_exceeded || held > kLimit;
      }
      held -= mine;
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT(!was_exceeded);
  EXPECT_EQ(budget->held_bytes(), uint64_t{0});
}

std::vector<ByteRange> cut(const ByteRange& range, uint64_t size_bytes) {
  std::vector<ByteRange> spans;
  for (uint64_t begin = range.begin; begin < range.end; begin += size_bytes) {
    spans.push_back({begin, std::min(begin + size_bytes, range.end)});
  }
  return spans;
}

void touch(const ByteRange& span) {
  for (uint64_t at = span.begin; at < span.end; at += 4096) {
    (void)*reinterpret_cast<const volatile char*>(at);
  }
}

Bounds within(const std::shared_ptr<MemoryBudget>& budget) {
  Bounds bounds(budget->limit_bytes());
  bounds.budget = budget;
  return bounds;
}

// A stream of one file, gone through tensor by tensor.
struct Walk {
  Walk(
      const TemporaryFile& file,
      uint64_t tensor_bytes,
      const std::shared_ptr<MemoryBudget>& budget)
      : mapping(file.path(), kFileSize, MAP_PRIVATE),
        spans(cut(mapping.range(), tensor_bytes)),
        streamer(spans, within(budget)) {}

  [[nodiscard]] bool is_done() const {
    return next == spans.size();
  }
  void step() {
    const std::vector<size_t>& ends = streamer.window_ends();
    if (window == 0 || next == ends[window - 1]) {
      streamer.enter(window);
      EXPECT(streamer.invariants_hold());
      ++window;
    }
    touch(spans[next]);
    ++next;
  }

  TestMapping mapping;
  std::vector<ByteRange> spans;
  WindowStreamer streamer;
  size_t window = 0;
  size_t next = 0;
};

TEST(streams_of_a_budget_hold_its_limit_together) {
  const TemporaryFile file(kFileSize);
  for (const uint64_t limit : {12 * kMiB, 64 * kMiB, 160 * kMiB}) {
    for (const uint64_t size : {uint64_t{100000}, kMiB, 5 * kMiB}) {
      const auto budget = std::make_shared<MemoryBudget>(limit);
      // At three speeds, the second one beginning late.
      std::vector<std::unique_ptr<Walk>> walks;
      const size_t count = limit < 16 * kMiB ? 2 : 3;
      for (size_t i = 0; i < count; ++i) {
        walks.push_back(std::make_unique<Walk>(file, size, budget));
      }
      uint64_t peak = 0;
      for (int round = 0;; ++round) {
        bool are_done = true;
        for (size_t i = 0; i < count; ++i) {
          if (walks[i]->is_done() || (i == 1 && round < 3)) {
            are_done = are_done && walks[i]->is_done();
            continue;
          }
          are_done = false;
          for (size_t step = 0; step <= i && !walks[i]->is_done(); ++step) {
            walks[i]->step();
          }
        }
        uint64_t resident = 0;
        for (const auto& walk : walks) {
          resident += walk->mapping.resident().clean_bytes;
        }
        peak = std::max(peak, resident);
        EXPECT(budget->held_bytes() <= limit);
        EXPECT(resident <= budget->held_bytes() || size > limit / 4);
        if (are_done) {
          break;
        }
      }
      if (size <= limit / 4) {
        EXPECT(peak <= limit);
        for (const auto& walk : walks) {
          EXPECT_EQ(walk->streamer.figures().over_share_bytes, uint64_t{0});
        }
      }
      walks.clear();
      EXPECT_EQ(budget->held_bytes(), uint64_t{0});
    }
  }
}

TEST(a_window_that_was_released_comes_back_as_it_was) {
  const TemporaryFile file(kFileSize);
  const auto budget = std::make_shared<MemoryBudget>(16 * kMiB);
  Walk walk(file, kMiB, budget);
  walk.step();
  const uint64_t held_bytes = budget->held_bytes();
  const size_t end = walk.streamer.window_ends()[0];
  walk.streamer.release();
  EXPECT_EQ(budget->held_bytes(), uint64_t{0});
  EXPECT_EQ(walk.mapping.resident().clean_bytes, uint64_t{0});
  walk.streamer.enter(0);
  EXPECT_EQ(walk.streamer.window_ends()[0], end);
  EXPECT_EQ(budget->held_bytes(), held_bytes);
  walk.streamer.release();
  BudgetShare other(budget);
  other.take({12 * kMiB, 12 * kMiB, 12 * kMiB});
  EXPECT(!refusal([&] { walk.streamer.enter(0); }).empty());
  other.keep(0);
  walk.streamer.plan_anew();
  EXPECT_EQ(walk.streamer.window_count(), size_t{1});
  walk.streamer.enter(0);
}

TEST(look_ups_and_pieces_take_their_share) {
  const TemporaryFile file(kFileSize);
  const auto budget = std::make_shared<MemoryBudget>(16 * kMiB);
  Walk walk(file, 2 * kMiB, budget);
  Walk other(file, 24 * kMiB, budget);
  for (size_t index = 0; index < walk.spans.size(); ++index) {
    walk.streamer.admit(index);
    touch(walk.spans[index]);
    const uint64_t piece_bytes = other.streamer.piece_bytes();
    for (uint64_t at = 0; at + piece_bytes <= 24 * kMiB; at += piece_bytes) {
      const uint64_t begin = other.spans[0].begin + at;
      other.streamer.enter_piece({begin, begin + piece_bytes});
      touch({begin, begin + piece_bytes});
      EXPECT(
          walk.mapping.resident().clean_bytes +
              other.mapping.resident().clean_bytes <=
          budget->held_bytes());
    }
    EXPECT(budget->held_bytes() <= 16 * kMiB);
    other.streamer.enter_piece({});
    other.streamer.release();
  }
}

TEST(streams_over_one_mapping_leave_each_other_what_is_live) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = cut(mapping.range(), 2 * kMiB);
  for (const uint64_t limit : {8 * kMiB, 64 * kMiB}) {
    mapping.touch();
    WindowStreamer one(spans, limit);
    one.enter(0);
    WindowStreamer two(spans, limit);  // which comes in the midst of it
    const size_t first_end = one.window_ends()[0];
    const ByteRange window{spans[0].begin, spans[first_end - 1].end};
    touch(window);
    two.enter(0);
    touch(window);
    if (limit < kFileSize) {
      EXPECT_EQ(mapping.resident().clean_bytes, window.size_bytes());
      two.enter(1);  // the first window is still the other's
      EXPECT_EQ(two.resident_bytes() <= limit, true);
      EXPECT(mapping.resident().clean_bytes >= window.size_bytes());
      one.enter(1);
      EXPECT_EQ(one.figures().peak_resident_bytes <= limit, true);
    }
    two.release();
    one.release();
    EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
  }
}

}  // namespace
}  // namespace ckpt_streamer::stream
