// The runner behind test_macros.h: exits 0 when every selected test passes.
#include <thread>

#include "test_macros.h"

int main(int argc, char** argv) {
  using ckpt_streamer::testing::registry;
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (const auto& test : registry()) {
      std::printf("%s\n", test.name);
    }
    return 0;
  }
#ifdef THREAD_SANITIZED
  // TSan makes a thread of its own beside the first one; tests count threads.
  std::thread([] {}).join();
#endif
  int ran = 0;
  int failed = 0;
  for (const auto& test : registry()) {
    bool selected = argc == 1;
    for (int i = 1; i < argc; ++i) {
      selected = selected || std::strcmp(argv[i], test.name) == 0;
    }
    if (!selected) {
      continue;
    }
    ++ran;
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failed;
      std::fprintf(stderr, "FAILED %s\n  %s\n", test.name, error.what());
    }
  }
  std::printf("%d ran, %d failed\n", ran, failed);
  return failed == 0 && ran > 0 ? 0 : 1;
}
