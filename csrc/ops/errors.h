// The one place where errors of the layers below become torch's.
//
// Corrupt -> c10::ValueError, Unsupported -> c10::NotImplementedError,
// InvalidArgument -> c10::ValueError, Io -> c10::Error (a RuntimeError). Texts
// are unchanged. Scripted code sees the same text as a RuntimeError.
#pragma once

#include <c10/util/Exception.h>

#include <string>
#include <utility>

#include "base/error.h"

namespace ckpt_streamer::ops {

[[noreturn]] inline void rethrow_as_torch(const CheckpointError& error) {
  switch (error.kind()) {
    case ErrorKind::kUnsupported:
      C10_THROW_ERROR(NotImplementedError, error.what());
    case ErrorKind::kCorrupt:
    case ErrorKind::kInvalidArgument:
      C10_THROW_ERROR(ValueError, error.what());
    case ErrorKind::kIo:
      break;
  }
  C10_THROW_ERROR(Error, error.what());
}

// Calls `body`; a CheckpointError that comes out becomes torch's.
template <typename Body>
decltype(auto) with_torch_errors(Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const CheckpointError& error) {
    rethrow_as_torch(error);
  }
}

// THROWS: c10::ValueError unless the limit is positive.
inline uint64_t checked_limit(int64_t memory_limit_bytes) {
  TORCH_CHECK_VALUE(
      memory_limit_bytes > 0,
      "memory_limit_bytes is ",
      memory_limit_bytes,
      ", expected a positive number of bytes");
  return static_cast<uint64_t>(memory_limit_bytes);
}

}  // namespace ckpt_streamer::ops
