// Times opening a checkpoint and converting all of it to bfloat16, in C++:
//
//   open_loop <checkpoint> <memory_limit_bytes> <passes>
//
// prints the seconds of each pass. Freeing is timed: nothing is kept.
#include <ckpt_streamer/stream.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

namespace {

void convert(const std::string& path, uint64_t memory_limit_bytes) {
  ckpt_streamer::Stream stream = ckpt_streamer::open(
      path,
      {.memory_limit_bytes = memory_limit_bytes, .dtype = at::kBFloat16});
  while (stream.has_next()) {
    (void)stream.next();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    return 2;
  }
  try {
    for (int pass = 0; pass < std::stoi(argv[3]); ++pass) {
      const auto begin = std::chrono::steady_clock::now();
      convert(argv[1], std::stoull(argv[2]));
      const std::chrono::duration<double> seconds =
          std::chrono::steady_clock::now() - begin;
      std::printf("%.6f\n", seconds.count());
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
