// Files and directories in memory, by path.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/source_opener.h"
#include "memory_source.h"

namespace ckpt_streamer::testing {

class MemoryOpener final : public SourceOpener {
 public:
  void add(const std::string& path, const std::string& bytes) {
    files_[path] = std::make_unique<MemorySource>(bytes, path);
    for (size_t slash = path.rfind('/');
         slash != std::string::npos && slash > 0;
         slash = path.rfind('/', slash - 1)) {
      directories_.insert(path.substr(0, slash));
    }
  }

  [[nodiscard]] const ByteSource& open(const std::string& path) override {
    const auto found = files_.find(path);
    if (found == files_.end()) {
      throw CheckpointError(ErrorKind::kIo, path, "cannot open: no such file");
    }
    return *found->second;
  }
  [[nodiscard]] PathKind kind(const std::string& path) const override {
    return directories_.contains(path) ? PathKind::kDirectory
           : files_.contains(path)     ? PathKind::kOther
                                       : PathKind::kMissing;
  }

 private:
  std::map<std::string, std::unique_ptr<MemorySource>> files_;
  std::set<std::string> directories_;
};

}  // namespace ckpt_streamer::testing
