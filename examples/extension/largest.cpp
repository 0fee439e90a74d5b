// An op of one's own on top of ckpt_streamer: the largest absolute value of
// each tensor of a checkpoint.
#include <ATen/ATen.h>
#include <ckpt_streamer/stream.h>
#include <torch/library.h>

#include <string>

namespace {

c10::Dict<std::string, double> largest(
    const std::string& path,
    int64_t memory_limit_bytes) {
  // As the library's own ops refuse it.
  TORCH_CHECK_VALUE(memory_limit_bytes > 0, "expected a positive limit");
  c10::Dict<std::string, double> result;
  for (const auto& [name, tensor] : ckpt_streamer::open(
           path,
           {.memory_limit_bytes = static_cast<uint64_t>(memory_limit_bytes)})) {
    if (tensor.is_floating_point() && tensor.numel() > 0) {
      result.insert(name, tensor.abs().max().item<double>());
    }
  }
  return result;
}

}  // namespace

TORCH_LIBRARY(checkpoint_statistics, library) {
  library.def(
      "largest(str path, int memory_limit_bytes) -> Dict(str, float)",
      largest);
}
