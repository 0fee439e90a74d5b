#include "write/file_format.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "format/text.h"

namespace ckpt_streamer::write {
namespace {

constexpr std::array<std::string_view, 4> kTorchSuffixes{
    ".pt",
    ".pth",
    ".bin",
    ".ckpt"};

}  // namespace

std::string_view format_name(FileFormat format) noexcept {
  return format == FileFormat::kSafetensors ? "safetensors" : "torch";
}

FileFormat format_of(
    const std::string& path,
    const std::optional<std::string>& name) {
  for (const FileFormat format :
       {FileFormat::kSafetensors, FileFormat::kTorch}) {
    if (name == format_name(format)) {
      return format;
    }
  }
  if (name.has_value()) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        path,
        "the format is " + format::quoted(*name) +
            ", expected 'safetensors' or 'torch'");
  }
  std::string lower = path;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 'a' - 'A') : c;
  });
  if (lower.ends_with(".safetensors")) {
    return FileFormat::kSafetensors;
  }
  if (std::any_of(
          kTorchSuffixes.begin(),
          kTorchSuffixes.end(),
          [&](std::string_view suffix) { return lower.ends_with(suffix); })) {
    return FileFormat::kTorch;
  }
  throw CheckpointError(
      ErrorKind::kInvalidArgument,
      path,
      "the name does not say a format, expected .safetensors, or .pt, .pth, "
      ".bin or .ckpt at its end, or the format by its name");
}

}  // namespace ckpt_streamer::write
