// Loading a TorchScript archive without reading its tensors.
#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/jit/api/module.h>

#include <optional>
#include <string>

namespace ckpt_streamer::ops {

// The module that torch::jit::load(path, device) gives, its code's constants
// included, but that its tensors on the CPU are views of the file's private
// mapping, as CheckpointTensors::tensor() makes them: nothing of them is read,
// the system can evict what is, and writing to one never reaches the file.
//
// THROWS: c10::ValueError for a corrupt file, one that is not a TorchScript
// archive, or, with `verify`, records that are not what their checksums say;
// c10::NotImplementedError for what is not supported; c10::Error when the file
// cannot be read; whatever torch::jit::load throws for its code.
// Cost: that of the code, and a system call for each file.
[[nodiscard]] torch::jit::Module jit_load(
    const std::string& path,
    std::optional<c10::Device> device,
    bool verify);

}  // namespace ckpt_streamer::ops
