#include "ops/file_memory.h"

namespace ckpt_streamer::ops {
namespace {

void let_go(void* share) {
  const std::unique_ptr<FileShare> ended(static_cast<FileShare*>(share));
}

}  // namespace

c10::DataPtr file_memory(const FileShare& file, uint64_t file_offset) {
  auto share = std::make_unique<FileShare>(file);
  return {file->at(file_offset), share.release(), let_go, c10::kCPU};
}

FileShare file_of(const c10::DataPtr& memory) {
  return memory.get_deleter() == let_go
             ? *static_cast<const FileShare*>(memory.get_context())
             : nullptr;
}

}  // namespace ckpt_streamer::ops
