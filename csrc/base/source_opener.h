// Opens files by their paths, for readers of checkpoints that lie in several.
//
// ops/ implements it with os::File, tests with memory.
#pragma once

#include <string>

#include "base/byte_source.h"

namespace ckpt_streamer {

enum class PathKind {
  kMissing,  // or not to be looked at
  kDirectory,
  kOther,
};

class SourceOpener {
 public:
  SourceOpener() = default;
  SourceOpener(const SourceOpener&) = delete;
  SourceOpener& operator=(const SourceOpener&) = delete;
  virtual ~SourceOpener() = default;

  // The file's bytes; lives as long as the opener. The same path opened again
  // is the same source.
  // THROWS: as os::File.
  [[nodiscard]] virtual const ByteSource& open(const std::string& path) = 0;

  // Symbolic links are followed.
  [[nodiscard]] virtual PathKind kind(const std::string& path) const = 0;
};

}  // namespace ckpt_streamer
