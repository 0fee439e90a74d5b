// Loads TorchScript archives without reading their tensors.
//
//   #include <ckpt_streamer/jit.h>
//
//   torch::jit::Module module = ckpt_streamer::jit_load("model.pt");
//
// Errors, linking and versions: see stream.h.
#pragma once

#include <c10/core/Device.h>
#include <ckpt_streamer/stream.h>
#include <torch/csrc/jit/api/module.h>

namespace ckpt_streamer {
inline namespace v1 {

// What jit_load() takes beside the file.
struct JitLoadOptions {
  // Where tensors go, as that of torch::jit::load().
  std::optional<c10::Device> device = std::nullopt;
  // Whether tensors are held against their checksums, which reads all of them.
  bool verify = false;
};

// The module that torch::jit::load(path, device) gives, but that its tensors on
// the CPU are views of the file's private mapping: nothing of them is read
// before it is used, and the system can evict what is. Writing to one never
// reaches the file. They count against no limit.
// THROWS: c10::ValueError for a corrupt file, or one that is not a TorchScript
// archive; c10::NotImplementedError for what is not supported; c10::Error when
// it cannot be read; whatever torch::jit::load throws for its code.
// Cost: that of the archive's code.
[[nodiscard]] CKPT_STREAMER_API torch::jit::Module jit_load(
    const std::string& path,
    const JitLoadOptions& options = {});

}  // namespace v1
}  // namespace ckpt_streamer
