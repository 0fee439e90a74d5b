// Budgets of the C++ interface as the ops take them.
#pragma once

#include <optional>

#include "ckpt_streamer/stream.h"
#include "ops/memory_budget.h"

namespace ckpt_streamer {

[[nodiscard]] ops::OptionalBudget op_budget(
    const std::optional<MemoryBudget>& budget);

}  // namespace ckpt_streamer
