// Times opening a checkpoint and converting all of it to bfloat16, in C++:
//
//   open_loop <library> <checkpoint> <memory_limit_bytes> <passes>
//
// prints the seconds of each pass. Freeing is timed: nothing is kept.
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/csrc/jit/api/module.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>

namespace {

void convert(const std::string& path, int64_t memory_limit_bytes) {
  const c10::IValue no_select;
  torch::jit::Stack stack = {
      path, memory_limit_bytes, at::kBFloat16, /*verify=*/false, no_select};
  c10::Dispatcher::singleton()
      .findSchemaOrThrow("ckpt_streamer::open", "")
      .callBoxed(stack);
  const c10::IValue handle = stack.back();
  const auto& type = handle.toObject()->type();
  torch::jit::Function& has_next = type->getMethod("has_next");
  torch::jit::Function& next = type->getMethod("next");
  const auto call = [&](torch::jit::Function& method) {
    stack.assign(1, handle);
    method.run(stack);
    return stack.back();
  };
  while (call(has_next).toBool()) {
    (void)call(next);
  }
}

int run(char** argv) {
  if (dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  for (int pass = 0; pass < std::stoi(argv[4]); ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    convert(argv[2], std::stoll(argv[3]));
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - begin;
    std::printf("%.6f\n", seconds.count());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return argc == 5 ? run(argv) : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
