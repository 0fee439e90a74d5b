#include "stream/map_ahead.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "os/residency.h"
#include "os/threads.h"

namespace ckpt_streamer::stream {
namespace {

enum class Phase : uint32_t { kIdle, kAsked, kMapping, kEnding, kStopped };

// What end() may have to wait for.
constexpr uint64_t kStepBytes = uint64_t{2} << 20;

}  // namespace

// The phase says whose the ranges are: the thread's from kMapping until it says
// kIdle, else the owner's. Both sides' steps from kAsked and kMapping compete.
struct MapAhead::State {
  std::atomic<Phase> phase = Phase::kIdle;
  std::vector<ByteRange> ranges;

  // In one order for all: whoever is about to wait sees it, or is notified.
  void go_to(Phase next) noexcept {
    phase.store(next, std::memory_order_seq_cst);
    phase.notify_all();
  }

  bool go_from(Phase expected, Phase next) noexcept {
    return phase.compare_exchange_strong(expected, next);
  }
};

MapAhead::MapAhead() : state_(std::make_unique<State>()) {}

MapAhead::~MapAhead() {
  stop();
}

void MapAhead::run(State& state) noexcept {
  const os::WithoutLocks without_locks;
  const auto may_go_on = [&] {
    return state.phase.load(std::memory_order_acquire) == Phase::kMapping;
  };
  const auto map_all = [&] {
    for (const ByteRange& range : state.ranges) {
      for (uint64_t begin = range.begin; begin < range.end;) {
        const uint64_t end =
            std::min(range.end, round_down(begin, kStepBytes) + kStepBytes);
        if (!may_go_on() || os::populate_at_once({begin, end}) != 0) {
          return;
        }
        begin = end;
      }
    }
  };
  for (;;) {
    state.phase.wait(Phase::kIdle);
    if (state.phase.load() == Phase::kStopped) {
      return;
    }
    if (state.go_from(Phase::kAsked, Phase::kMapping)) {
      map_all();
      state.go_to(Phase::kIdle);
    }
  }
}

void MapAhead::begin(std::vector<ByteRange> ranges) noexcept {
  end();
  std::swap(state_->ranges, ranges);
  if (!thread_.joinable()) {
    try {
      thread_ = os::start_thread([&state = *state_] { run(state); });
    } catch (...) {  // no further thread: the reader's faults do it
      return;
    }
    owner_process_ = os::current_process_id();
  }
  state_->go_to(Phase::kAsked);
}

void MapAhead::end() noexcept {
  forget_the_parents();
  if (!state_->go_from(Phase::kAsked, Phase::kIdle) &&
      state_->go_from(Phase::kMapping, Phase::kEnding)) {
    state_->phase.wait(Phase::kEnding);
  }
}

void MapAhead::stop() noexcept {
  end();
  if (thread_.joinable()) {
    state_->go_to(Phase::kStopped);
    thread_.join();
    state_->go_to(Phase::kIdle);
  }
}

// The thread stayed with the parent, and no lock with it: what they shared can
// be used again.
void MapAhead::forget_the_parents() noexcept {
  if (!thread_.joinable() || owner_process_ == os::current_process_id()) {
    return;
  }
  os::leave_with_parent(std::move(thread_));
  state_->phase = Phase::kIdle;
}

}  // namespace ckpt_streamer::stream
