// safetensors.
#include "format/safetensors.h"
#include "index_walk.h"
#include "memory_source.h"

using namespace ckpt_streamer;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const testing::MemorySource source(fuzz::text_of(data, size));
  (void)format::is_safetensors(
      fuzz::text_of(data, std::min<size_t>(size, 4096)),
      size);
  fuzz::is_read([&] {
    auto index = format::read_safetensors(source);
    if (index.files.empty()) {  // as read_index does
      index.files.push_back({source.path(), {}});
    }
    fuzz::walk_index(index, {&size, 1});
  });
  return 0;
}
