// torch.save's format before torch 1.6.
#include "format/torch_legacy.h"
#include "index_walk.h"
#include "memory_source.h"

using namespace ckpt_streamer;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const testing::MemorySource source(fuzz::text_of(data, size));
  fuzz::is_read([&] {
    auto index = format::read_torch_legacy(source);
    if (index.files.empty()) {  // as read_index does
      index.files.push_back({source.path(), {}});
    }
    fuzz::walk_index(index, {&size, 1});
  });
  return 0;
}
