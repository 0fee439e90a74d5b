#include "ops/memory_budget.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "ops/errors.h"

namespace ckpt_streamer::ops {
namespace {

std::shared_ptr<stream::MemoryBudget> checked_budget(int64_t limit_bytes) {
  const auto least_bytes =
      static_cast<int64_t>(stream::MemoryBudget::least_bytes());
  TORCH_CHECK_VALUE(
      limit_bytes >= least_bytes,
      "limit_bytes is ",
      limit_bytes,
      ", expected a budget of at least ",
      least_bytes,
      " bytes");
  return std::make_shared<stream::MemoryBudget>(
      static_cast<uint64_t>(limit_bytes));
}

}  // namespace

MemoryBudget::MemoryBudget(int64_t limit_bytes)
    : budget_(checked_budget(limit_bytes)) {}

int64_t MemoryBudget::limit_bytes() const {
  return static_cast<int64_t>(budget_->limit_bytes());
}

int64_t MemoryBudget::bytes_held() const {
  return static_cast<int64_t>(budget_->held_bytes());
}

stream::Bounds checked_bounds(
    int64_t memory_limit_bytes,
    bool drop_page_cache,
    const OptionalBudget& budget) {
  stream::Bounds bounds(checked_limit(memory_limit_bytes), drop_page_cache);
  if (budget.has_value()) {
    bounds.budget = (*budget)->shared();
    bounds.memory_limit_bytes =
        std::min(bounds.memory_limit_bytes, bounds.budget->limit_bytes());
  }
  return bounds;
}

BudgetShare::BudgetShare(
    const c10::intrusive_ptr<MemoryBudget>& budget,
    int64_t most_bytes)
    : share_(budget->shared()) {
  const uint64_t least_bytes = stream::MemoryBudget::least_bytes();
  with_torch_errors([&] {
    share_.take(
        {.needed_bytes = 0,
         .least_bytes = least_bytes,
         .most_bytes = std::max(least_bytes, checked_limit(most_bytes))});
  });
}

int64_t BudgetShare::bytes() const {
  return static_cast<int64_t>(share_.bytes());
}

void BudgetShare::close() {
  share_.leave();
}

}  // namespace ckpt_streamer::ops
