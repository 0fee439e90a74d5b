#include "ops/load_into.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "format/name_prefix.h"
#include "format/slot_finder.h"
#include "format/slot_names.h"
#include "format/text.h"
#include "ops/checkpoint_tensors.h"
#include "ops/copy_under_limit.h"
#include "ops/errors.h"
#include "ops/file_source.h"
#include "ops/stream_handle.h"

namespace ckpt_streamer::ops {
namespace {

constexpr size_t kShownNames = 5;

// 'a', 'b' and 7 others
std::string list_of(const std::vector<std::string>& names) {
  std::string list;
  for (size_t i = 0; i < std::min(names.size(), kShownNames); ++i) {
    list += (i > 0 ? ", " : "") + format::quoted(names[i]);
  }
  if (names.size() > kShownNames) {
    list += " and " + std::to_string(names.size() - kShownNames) + " others";
  }
  return list;
}

// As load_state_dict, which takes one element of one dimension for none: files
// from before torch 0.4 have those.
bool fits(const at::Tensor& parameter, at::IntArrayRef sizes) {
  return parameter.sizes() == sizes ||
         (parameter.dim() == 0 && sizes == at::IntArrayRef{1});
}

// Which of a checkpoint's tensors go to which parameters.
class Plan {
 public:
  Plan(
      const c10::Dict<std::string, at::Tensor>& parameters,
      const format::CheckpointIndex& index,
      const std::optional<std::string>& prefix)
      : index_(index), path_(index.files.front().path) {
    std::unordered_set<std::string_view> names;
    for (const auto& entry : parameters) {
      parameters_.emplace(entry.key(), entry.value());
    }
    for (const auto& [name, parameter] : parameters_) {
      names.insert(name);
    }
    const std::vector<uint32_t> slots = index.all_slots();
    prefix_ =
        prefix.has_value() ? *prefix : format::find_prefix(index, slots, names);
    format::SlotNames slot_names(index);
    std::unordered_set<std::string> found;
    for (const uint32_t slot : slots) {
      const std::string& full_name = slot_names.name(slot);
      if (!full_name.starts_with(prefix_)) {
        continue;
      }
      const std::string name = full_name.substr(prefix_.size());
      if (!parameters_.contains(name)) {
        unexpected.push_back(name);
        continue;
      }
      if (!found.insert(name).second) {
        // Says where each is.
        (void)format::SlotFinder(index, slots).find_one(full_name);
      }
      check_shape(name, index.tensors[index.slots[slot].tensor_index]);
      matched.push_back(slot);
    }
    for (const auto& entry : parameters) {
      if (!found.contains(entry.key())) {
        missing.push_back(entry.key());
      }
    }
  }

  void check_complete() const {
    if (missing.empty() && unexpected.empty()) {
      return;
    }
    std::string text = missing.empty() ? "" : "missing " + list_of(missing);
    if (!unexpected.empty()) {
      text +=
          (text.empty() ? "" : ", ") + ("unexpected " + list_of(unexpected));
    }
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        path_,
        text + ", expected a tensor for each parameter" +
            (prefix_.empty() ? "" : " behind " + format::quoted(prefix_)) +
            ", and no others");
  }

  [[nodiscard]] at::Tensor parameter_of(const std::string& full_name) const {
    return parameters_.at(full_name.substr(prefix_.size()));
  }

  std::vector<uint32_t> matched;  // slots of the index
  std::vector<std::string> missing;
  std::vector<std::string> unexpected;

 private:
  void check_shape(const std::string& name, const format::TensorRecord& tensor)
      const {
    const at::Tensor& parameter = parameters_.at(name);
    const at::IntArrayRef sizes(
        index_.sizes(tensor).data(),
        index_.sizes(tensor).size());
    TORCH_CHECK_VALUE(
        fits(parameter, sizes),
        path_,
        ": ",
        format::quoted(prefix_ + name),
        " is of shape ",
        sizes,
        ", expected ",
        parameter.sizes(),
        ", the shape of its parameter");
    TORCH_CHECK_VALUE(
        !parameter.is_meta(),
        "parameter ",
        format::quoted(name),
        " is on the meta device, expected one with memory to load ",
        path_,
        " into");
  }

  const format::CheckpointIndex& index_;
  const std::string& path_;
  std::string prefix_;
  std::unordered_map<std::string, at::Tensor> parameters_;
};

// Of one file, or of several.
template <typename Paths>
MissingAndUnexpected load_files(
    const c10::Dict<std::string, at::Tensor>& parameters,
    const Paths& paths,
    int64_t memory_limit_bytes,
    const std::optional<std::string>& prefix,
    bool strict,
    bool verify,
    bool drop_page_cache,
    const OptionalBudget& budget) {
  stream::Bounds bounds(checked_limit(memory_limit_bytes), drop_page_cache);
  c10::intrusive_ptr<BudgetShare> share;
  if (budget.has_value()) {
    share = c10::make_intrusive<BudgetShare>(*budget, memory_limit_bytes);
    bounds.memory_limit_bytes = static_cast<uint64_t>(share->bytes());
  }
  return with_torch_errors([&] {
    const auto checkpoint = std::make_shared<const CheckpointTensors>(
        paths,
        bounds.memory_limit_bytes,
        verify ? Verify::kOn : Verify::kOff);
    Plan plan(parameters, checkpoint->index(), prefix);
    if (strict) {
      plan.check_complete();
    }
    StreamHandle stream(
        std::make_unique<FileSource>(checkpoint, std::move(plan.matched)),
        bounds,
        Conversion(std::nullopt));
    const at::NoGradGuard no_grad;
    while (stream.has_next()) {
      const auto [name, tensor] = stream.next();
      at::Tensor parameter = plan.parameter_of(name);
      try {
        copy_within(
            parameter,
            parameter.dim() == 0 ? tensor.reshape({}) : tensor,
            bounds);
      } catch (c10::Error& error) {
        error.add_context("while " + format::quoted(name) + " was loaded");
        throw;
      }
    }
    return MissingAndUnexpected(
        std::move(plan.missing),
        std::move(plan.unexpected));
  });
}

}  // namespace

MissingAndUnexpected load_into(
    const c10::Dict<std::string, at::Tensor>& parameters,
    const std::string& path,
    int64_t memory_limit_bytes,
    const std::optional<std::string>& prefix,
    bool strict,
    bool verify,
    bool drop_page_cache,
    const OptionalBudget& budget) {
  return load_files(
      parameters,
      path,
      memory_limit_bytes,
      prefix,
      strict,
      verify,
      drop_page_cache,
      budget);
}

MissingAndUnexpected load_files_into(
    const c10::Dict<std::string, at::Tensor>& parameters,
    const std::vector<std::string>& paths,
    int64_t memory_limit_bytes,
    const std::optional<std::string>& prefix,
    bool strict,
    bool verify,
    bool drop_page_cache,
    const OptionalBudget& budget) {
  return load_files(
      parameters,
      std::span<const std::string>(paths),
      memory_limit_bytes,
      prefix,
      strict,
      verify,
      drop_page_cache,
      budget);
}

}  // namespace ckpt_streamer::ops
