// Streams a checkpoint from C++, with libtorch and without Python: the library
// of ops is loaded at run time, its types are reached through the dispatcher.
//
//   read_checkpoint <library> <checkpoint> <memory_limit_bytes> [module]
//
// With a module, a saved TorchScript one, calls it on the same file.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros.h>
#include <dlfcn.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <cstdio>
#include <exception>
#include <optional>
#include <string>

namespace {

// Calls a method of a custom class object.
c10::IValue call(const c10::IValue& object, const std::string& method) {
  torch::jit::Function& function = object.toObject()->type()->getMethod(method);
  torch::jit::Stack stack = {object};
  function.run(stack);
  return stack.empty() ? c10::IValue() : stack.back();
}

c10::IValue open(
    const std::string& path,
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype) {
  const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("ckpt_streamer::open", "");
  torch::jit::Stack stack = {
      path,
      memory_limit_bytes,
      dtype,
      /*verify=*/false,
      /*select=*/c10::IValue()};
  op.callBoxed(stack);
  return stack.back();
}

int run(int argc, char** argv) {
  if (dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const std::string path = argv[2];
  const int64_t memory_limit_bytes = std::stoll(argv[3]);

  const c10::IValue handle = open(path, memory_limit_bytes, std::nullopt);
  std::string first;
  int count = 0;
  double sum = 0;
  while (call(handle, "has_next").toBool()) {
    const auto item = call(handle, "next").toTuple();
    const std::string name = item->elements()[0].toStringRef();
    first = count == 0 ? name : first;
    sum += item->elements()[1].toTensor().to(at::kDouble).sum().item<double>();
    ++count;
  }
  std::printf("first=%s\ncount=%d\nsum=%f\n", first.c_str(), count, sum);
  for (const char* name : {"peak_bytes_resident", "bytes_resident"}) {
    std::printf("%s=%lld\n", name, (long long)call(handle, name).toInt());
  }

  const auto copy =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("ckpt_streamer::copy_", "")
          .typed<at::Tensor&(at::Tensor&, const at::Tensor&, int64_t)>();
  const c10::IValue converted = open(path, memory_limit_bytes, at::kBFloat16);
  double converted_sum = 0;
  double copied_sum = 0;
  while (call(converted, "has_next").toBool()) {
    const auto item = call(converted, "next").toTuple();
    const at::Tensor tensor = item->elements()[1].toTensor();
    TORCH_CHECK(tensor.scalar_type() == at::kBFloat16, "not converted");
    converted_sum += tensor.to(at::kDouble).sum().item<double>();
    at::Tensor destination = at::zeros(tensor.sizes(), at::kDouble);
    copied_sum +=
        copy.call(destination, tensor, memory_limit_bytes).sum().item<double>();
  }
  std::printf("converted_sum=%f\n", converted_sum);
  std::printf("copied_sum=%f\n", copied_sum);
  if (argc > 4) {
    torch::jit::Module module = torch::jit::load(argv[4]);
    const at::Tensor result =
        module.forward({path, memory_limit_bytes}).toTensor();
    std::printf("module_sum=%f\n", result.item<double>());
  }
  std::printf(
      "has_python=%d\n",
      dlsym(RTLD_DEFAULT, "Py_Initialize") != nullptr);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return argc >= 4 ? run(argc, argv) : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
