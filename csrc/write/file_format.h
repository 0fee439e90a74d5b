// The formats that are written.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ckpt_streamer::write {

enum class FileFormat : uint8_t {
  kSafetensors,
  kTorch,  // torch.save's zip archive
};

// "safetensors" or "torch".
[[nodiscard]] std::string_view format_name(FileFormat format) noexcept;

// Of a name as above; of none, what the end of the path says: .safetensors, or
// .pt, .pth, .bin or .ckpt, in any case.
// THROWS: CheckpointError InvalidArgument for others.
[[nodiscard]] FileFormat format_of(
    const std::string& path,
    const std::optional<std::string>& name);

}  // namespace ckpt_streamer::write
