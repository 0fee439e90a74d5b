// Keeping the memory of many storages mapped by holding few of them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "base/byte_range.h"
#include "ops/file_memory.h"

namespace ckpt_streamer::ops {

// Storages that share one owner of their memory (torch.load(mmap=True) cuts all
// of a file's from one mapping) are kept mapped by any one of them: only the
// first is held. Of those of a checkpoint that was opened here, the file is.
// Not thread-safe.
class StorageHolders {
 public:
  // `span`: the addresses of its elements, which are to stay mapped; nothing is
  // held if it is empty.
  void add(const at::Tensor& tensor, const ByteRange& span);

  // Lets go of those whose addresses' hull `is_needed` says no to.
  void keep_if(const std::function<bool(const ByteRange&)>& is_needed);

  // Lets go of those whose storage has been given other memory since, as
  // share_memory_() does, and returns their hulls: what was there may be
  // unmapped now, or be somebody else's.
  [[nodiscard]] std::vector<ByteRange> take_moved();

 private:
  void add_storage(const c10::Storage& storage, const ByteRange& span);

  struct Holder {
    c10::Storage storage;
    // Of its memory when it was added.
    void* data;
    void* context;
    c10::DeleterFnPtr deleter;
    ByteRange hull;  // of the spans that rely on it
  };

  struct FileHolder {
    FileShare file;
    ByteRange hull;  // likewise
  };

  std::vector<Holder> holders_;
  std::vector<FileHolder> files_;
};

}  // namespace ckpt_streamer::ops
