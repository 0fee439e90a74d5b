// Times going through a checkpoint in C++, without touching its tensors:
//
//   small_loop <checkpoint> <memory_limit_bytes> <passes>
//
// prints the seconds of each pass, the opening left out.
#include <ckpt_streamer/stream.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

int main(int argc, char** argv) {
  if (argc != 4) {
    return 2;
  }
  try {
    ckpt_streamer::Stream stream = ckpt_streamer::open(
        argv[1],
        {.memory_limit_bytes = std::stoull(argv[2])});
    for (int pass = 0; pass < std::stoi(argv[3]); ++pass) {
      stream.reset();
      size_t name_bytes = 0;
      const auto begin = std::chrono::steady_clock::now();
      for (const auto& [name, tensor] : stream) {
        name_bytes += name.size();
      }
      const std::chrono::duration<double> seconds =
          std::chrono::steady_clock::now() - begin;
      std::printf("%.6f\n", name_bytes > 0 ? seconds.count() : 0);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
