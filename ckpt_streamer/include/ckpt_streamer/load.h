// Loads a checkpoint into tensors that are there already, within a bounded
// amount of physical memory.
//
//   #include <ckpt_streamer/load.h>
//
//   torch::jit::Module module = torch::jit::load("model.pt");
//   const auto [missing, unexpected] =
//       ckpt_streamer::load_into(ckpt_streamer::state_of(module), "new.ckpt");
//
// Errors, linking and versions: see stream.h.
#pragma once

#include <ckpt_streamer/stream.h>

namespace torch::jit {
struct Module;
}  // namespace torch::jit

namespace ckpt_streamer {
inline namespace v1 {

// What load_into() takes beside the files.
struct LoadOptions {
  // The most of the files' clean pages to hold in physical memory, however
  // large a tensor is. Positive.
  uint64_t memory_limit_bytes = kDefaultMemoryLimitBytes;
  // What the names in the file begin with and lose, as "state_dict."; others
  // are left out. Without one, it is that with which most parameters are found.
  std::optional<std::string> prefix = std::nullopt;
  // Whether missing and unexpected names are an error.
  bool strict = false;
  // As in OpenOptions.
  bool verify = false;
  bool drop_page_cache = false;
  // Of it, half of what is left is taken for the call.
  std::optional<MemoryBudget> budget = std::nullopt;
};

struct LoadResult {
  // Names of parameters that the file does not have, in their order.
  std::vector<std::string> missing;
  // Names of tensors that the parameters do not have, in the order of the file.
  std::vector<std::string> unexpected;
};

// Copies each tensor of the file into the parameter of its name, without
// gradients: versions are bumped; dtypes, devices and memory stay the
// parameters'. No page of the file is resident in the end.
//
// Everything is checked before anything is copied. THROWS, then:
// c10::ValueError for a limit of 0, a tensor of another shape than its
// parameter (but for one element of one dimension, which is taken for none), a
// parameter on the meta device, a name that several tensors have, several
// prefixes with which most parameters are found, or, with `strict`, missing and
// unexpected names; as open(). While copying: whatever Tensor::copy_ throws,
// with the tensor's name; as Stream::next(). What was copied by then stays.
CKPT_STREAMER_API LoadResult load_into(
    const c10::Dict<std::string, at::Tensor>& parameters,
    const std::string& path,
    const LoadOptions& options = {});

// The same of several files, whose names do not repeat.
CKPT_STREAMER_API LoadResult load_into(
    const c10::Dict<std::string, at::Tensor>& parameters,
    const std::vector<std::string>& paths,
    const LoadOptions& options = {});

// The parameters and buffers of a TorchScript module by their qualified names:
// the module's own tensors, so that what is loaded into them is in the module.
[[nodiscard]] CKPT_STREAMER_API c10::Dict<std::string, at::Tensor> state_of(
    const torch::jit::Module& module);

}  // namespace v1
}  // namespace ckpt_streamer
