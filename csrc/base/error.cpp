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
