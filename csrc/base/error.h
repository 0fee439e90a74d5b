// The one exception type of the layers below ops/.
//
// A message reads `<path>: <what was found>, <what was expected> [<where>]`:
// lower case, no full stop, offsets absolute in the file. Thread-safe (values).
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace ckpt_streamer {

enum class ErrorKind {
  kIo,               // the system refused: errno is in the text
  kCorrupt,          // the bytes contradict the format or each other
  kUnsupported,      // well-formed, but not something this library reads
  kInvalidArgument,  // the caller's fault
};

class CheckpointError : public std::runtime_error {
 public:
  // `what` is the whole sentence without path; `file_offset`, when given, is
  // appended as ` [byte N]`. An empty `path` leaves the prefix out.
  CheckpointError(
      ErrorKind kind,
      const std::string& path,
      const std::string& what,
      std::optional<uint64_t> file_offset = std::nullopt);

  ErrorKind kind() const noexcept {
    return kind_;
  }

 private:
  ErrorKind kind_;
};

// Throws an Io error `<path>: cannot <verb>: <strerror(error_number)>`.
[[noreturn]] void throw_errno(
    const std::string& path,
    const std::string& verb,
    int error_number);

}  // namespace ckpt_streamer
