// A zip file's directory.
#include "format/known_formats.h"
#include "format/zip_directory.h"
#include "fuzz_target.h"
#include "memory_source.h"

using namespace ckpt_streamer;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const testing::MemorySource source(fuzz::text_of(data, size));
  fuzz::is_read([&] {
    const auto directory = format::ZipDirectory::read(source);
    for (const format::ZipEntry& entry : directory.entries()) {
      fuzz::require(
          directory.find(entry.name) == &entry,
          "records are found by their names");
      fuzz::require(
          entry.data_range.begin <= entry.data_range.end &&
              entry.data_range.end <= size,
          "records lie inside the file");
    }
    if (!directory.entries().empty()) {
      (void)format::recognize_zip(directory);
    }
  });
  return 0;
}
