#include "api/budget.h"

#include <utility>

#include "api/handle_value.h"
#include "api/op_limit.h"

namespace ckpt_streamer {
inline namespace v1 {

using BudgetHandle = c10::intrusive_ptr<ops::MemoryBudget>;

struct BudgetAccess {
  static MemoryBudget make(BudgetHandle handle) {
    // Its target: the handle itself would also become a number.
    c10::intrusive_ptr<c10::intrusive_ptr_target> target(std::move(handle));
    return MemoryBudget(std::move(target));
  }
  static BudgetHandle handle(const MemoryBudget& budget) {
    return BudgetHandle::reclaim_copy(
        static_cast<ops::MemoryBudget*>(budget.handle_.get()));
  }
};

MemoryBudget::MemoryBudget(c10::intrusive_ptr<c10::intrusive_ptr_target> handle)
    : handle_(std::move(handle)) {}
MemoryBudget::MemoryBudget(uint64_t limit_bytes)
    : handle_(c10::make_intrusive<ops::MemoryBudget>(op_limit(limit_bytes))) {}
MemoryBudget::MemoryBudget(const MemoryBudget& other) = default;
MemoryBudget& MemoryBudget::operator=(const MemoryBudget& other) = default;
MemoryBudget::~MemoryBudget() = default;

uint64_t MemoryBudget::limit_bytes() const {
  return static_cast<uint64_t>(BudgetAccess::handle(*this)->limit_bytes());
}

uint64_t MemoryBudget::bytes_held() const {
  return static_cast<uint64_t>(BudgetAccess::handle(*this)->bytes_held());
}

c10::IValue MemoryBudget::to_ivalue() const {
  return BudgetAccess::handle(*this);
}

MemoryBudget MemoryBudget::from_ivalue(const c10::IValue& handle) {
  return BudgetAccess::make(
      handle_of_value<ops::MemoryBudget>(handle, "MemoryBudget"));
}

}  // namespace v1

ops::OptionalBudget op_budget(const std::optional<MemoryBudget>& budget) {
  if (!budget.has_value()) {
    return std::nullopt;
  }
  return BudgetAccess::handle(*budget);
}

}  // namespace ckpt_streamer
