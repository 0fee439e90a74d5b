#include "base/error.h"

#include <system_error>

namespace ckpt_streamer {
namespace {

std::string format_message(
    const std::string& path,
    const std::string& what,
    std::optional<uint64_t> file_offset) {
  std::string message;
  if (!path.empty()) {
    message += path;
    message += ": ";
  }
  message += what;
  // what() ends at a NUL, which only a path can bring.
  for (size_t at = 0; (at = message.find('\0', at)) != std::string::npos;) {
    message.replace(at, 1, "\\x00");
  }
  if (file_offset.has_value()) {
    message += " [byte " + std::to_string(*file_offset) + "]";
  }
  return message;
}

}  // namespace

CheckpointError::CheckpointError(
    ErrorKind kind,
    const std::string& path,
    const std::string& what,
    std::optional<uint64_t> file_offset)
    : std::runtime_error(format_message(path, what, file_offset)),
      kind_(kind) {}

void throw_errno(
    const std::string& path,
    const std::string& verb,
    int error_number) {
  throw CheckpointError(
      ErrorKind::kIo,
      path,
      "cannot " + verb + ": " +
          std::error_code(error_number, std::generic_category()).message());
}

}  // namespace ckpt_streamer
