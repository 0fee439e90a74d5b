#include "ckpt_streamer/load.h"

#include <torch/csrc/jit/api/module.h>

#include <utility>

#include "api/budget.h"
#include "api/op_limit.h"
#include "ops/load_into.h"

namespace ckpt_streamer {
inline namespace v1 {
namespace {

LoadResult result_of(ops::MissingAndUnexpected result) {
  auto& [missing, unexpected] = result;
  return {std::move(missing), std::move(unexpected)};
}

}  // namespace

LoadResult load_into(
    const c10::Dict<std::string, at::Tensor>& parameters,
    const std::string& path,
    const LoadOptions& options) {
  return result_of(
      ops::load_into(
          parameters,
          path,
          op_limit(options.memory_limit_bytes),
          options.prefix,
          options.strict,
          options.verify,
          options.drop_page_cache,
          op_budget(options.budget)));
}

LoadResult load_into(
    const c10::Dict<std::string, at::Tensor>& parameters,
    const std::vector<std::string>& paths,
    const LoadOptions& options) {
  return result_of(
      ops::load_files_into(
          parameters,
          paths,
          op_limit(options.memory_limit_bytes),
          options.prefix,
          options.strict,
          options.verify,
          options.drop_page_cache,
          op_budget(options.budget)));
}

c10::Dict<std::string, at::Tensor> state_of(const torch::jit::Module& module) {
  c10::Dict<std::string, at::Tensor> state;
  for (const auto& parameter : module.named_parameters()) {
    state.insert(parameter.name, parameter.value);
  }
  for (const auto& buffer : module.named_buffers()) {
    state.insert(buffer.name, buffer.value);
  }
  return state;
}

}  // namespace v1
}  // namespace ckpt_streamer
