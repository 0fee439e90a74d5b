// Any file by its path, and what is made of its index. Behind a line "--file--"
// come further files, '1', '2' and so on, for indexes of shards.
#include <string>
#include <string_view>
#include <vector>

#include "format/checkpoint_files.h"
#include "index_walk.h"
#include "memory_opener.h"

using namespace ckpt_streamer;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr std::string_view kSeparator = "\n--file--\n";
  const std::string input = fuzz::text_of(data, size);
  testing::MemoryOpener files;
  std::string_view rest = input;
  for (int number = 0;; ++number) {
    const size_t end = rest.find(kSeparator);
    files.add(std::to_string(number), std::string(rest.substr(0, end)));
    if (end == std::string_view::npos) {
      break;
    }
    rest.remove_prefix(end + kSeparator.size());
  }
  fuzz::is_read([&] {
    const auto index = format::read_checkpoint("0", files);
    std::vector<size_t> sizes;
    for (const format::FileRecord& file : index.files) {
      sizes.push_back(files.open(file.path).size_bytes());
    }
    fuzz::walk_index(index, sizes);
  });
  return 0;
}
