// torch.classes.ckpt_streamer.MemoryBudget: one limit for several streams, in
// eager Python, TorchScript and C++; see stream/memory_budget.h.
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "stream/bounds.h"
#include "stream/memory_budget.h"

namespace ckpt_streamer::ops {

// Thread-safe. Pickled and saved in a module, it is its limit: what is loaded
// is a new one, of which nothing is held.
class MemoryBudget final : public torch::CustomClassHolder {
 public:
  // THROWS: c10::ValueError below stream::MemoryBudget::least_bytes().
  explicit MemoryBudget(int64_t limit_bytes);

  int64_t limit_bytes() const;
  // What the streams may have resident at the moment, all together.
  int64_t bytes_held() const;

  [[nodiscard]] const std::shared_ptr<stream::MemoryBudget>& shared()
      const noexcept {
    return budget_;
  }

 private:
  std::shared_ptr<stream::MemoryBudget> budget_;
};

using OptionalBudget = std::optional<c10::intrusive_ptr<MemoryBudget>>;

// The smaller of both limits holds.
// THROWS: c10::ValueError unless the limit is positive.
[[nodiscard]] stream::Bounds checked_bounds(
    int64_t memory_limit_bytes,
    bool drop_page_cache,
    const OptionalBudget& budget);

// torch.classes.ckpt_streamer._BudgetShare: a part of a budget for one call
// that goes through all of a checkpoint, held until it ends.
class BudgetShare final : public torch::CustomClassHolder {
 public:
  // Half of what is left, `most_bytes` at most.
  // THROWS: c10::ValueError if that is too little for a stream.
  BudgetShare(
      const c10::intrusive_ptr<MemoryBudget>& budget,
      int64_t most_bytes);

  int64_t bytes() const;
  // Idempotent.
  void close();

 private:
  stream::BudgetShare share_;
};

}  // namespace ckpt_streamer::ops
