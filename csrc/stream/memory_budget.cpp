#include "stream/memory_budget.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "os/residency.h"

namespace ckpt_streamer::stream {
namespace {

// What is given of what the others leave.
uint64_t given_of(
    uint64_t free_bytes,
    uint64_t limit_bytes,
    uint64_t other_waiting_count,
    const BudgetShare::Request& request) {
  const uint64_t part_count = std::max<uint64_t>(other_waiting_count + 1, 2);
  const uint64_t spare_bytes = std::max(
      limit_bytes / 8,
      other_waiting_count * MemoryBudget::least_bytes());
  const bool may_have_all_it_needs =
      request.needed_bytes <= free_bytes - std::min(free_bytes, spare_bytes);
  const uint64_t given_bytes = std::max(
      {free_bytes / part_count,
       may_have_all_it_needs ? request.needed_bytes : 0,
       request.least_bytes});
  return std::min({given_bytes, free_bytes, request.most_bytes});
}

}  // namespace

uint64_t MemoryBudget::least_bytes() noexcept {
  return 2 * os::fault_extent_bytes();
}

BudgetShare::BudgetShare(std::shared_ptr<MemoryBudget> budget) noexcept
    : budget_(std::move(budget)) {
  wait(true);
}

BudgetShare::~BudgetShare() {
  leave();
}

void BudgetShare::wait(bool waits) noexcept {
  if (waits != waits_) {
    waits ? ++budget_->waiting_count_ : --budget_->waiting_count_;
    waits_ = waits;
  }
}

uint64_t BudgetShare::take(const Request& request) {
  const uint64_t limit_bytes = budget_->limit_bytes_;
  uint64_t held_bytes = budget_->held_bytes_;
  while (true) {
    const uint64_t free_bytes = limit_bytes - (held_bytes - bytes_);
    if (free_bytes < request.least_bytes) {
      throw CheckpointError(
          ErrorKind::kInvalidArgument,
          "",
          "the memory budget of " + std::to_string(limit_bytes) +
              " bytes has " + std::to_string(free_bytes) + " left, expected " +
              std::to_string(request.least_bytes) +
              " for a further stream: the others hold the rest until they go "
              "on to their next tensors, end, or are released");
    }
    const uint64_t given_bytes = given_of(
        free_bytes,
        limit_bytes,
        budget_->waiting_count_ - (waits_ ? 1 : 0),
        request);
    const uint64_t share_bytes = std::max(bytes_, given_bytes);
    if (budget_->held_bytes_.compare_exchange_weak(
            held_bytes,
            held_bytes - bytes_ + share_bytes)) {
      bytes_ = share_bytes;
      wait(false);
      return given_bytes;
    }
  }
}

void BudgetShare::keep(uint64_t share_bytes) noexcept {
  if (share_bytes < bytes_) {
    budget_->held_bytes_ -= bytes_ - share_bytes;
    bytes_ = share_bytes;
    wait(share_bytes == 0);
  }
}

void BudgetShare::leave() noexcept {
  keep(0);
  wait(false);
}

}  // namespace ckpt_streamer::stream
