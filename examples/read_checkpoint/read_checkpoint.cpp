// Prints a table of a checkpoint's tensors, whatever its format, in bounded
// memory and without Python:
//
//   read_checkpoint <checkpoint> [<limit in MiB>]
#include <ATen/ATen.h>
#include <ckpt_streamer/stream.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <sstream>
#include <string>

namespace {

std::string shape_of(const at::Tensor& tensor) {
  std::ostringstream shape;
  shape << tensor.sizes();
  return shape.str();
}

// Of the elements, as far as they are numbers.
std::string mean_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0 || tensor.is_complex() || tensor.is_quantized() ||
      tensor.is_meta() || tensor.layout() != at::kStrided) {
    return "";
  }
  return std::to_string(tensor.mean(at::kDouble).item<double>());
}

void print_table(const std::string& path, uint64_t memory_limit_bytes) {
  ckpt_streamer::Stream stream =
      ckpt_streamer::open(path, {.memory_limit_bytes = memory_limit_bytes});
  std::printf("%-40s %-14s %-20s %s\n", "name", "dtype", "shape", "mean");
  for (const auto& [name, tensor] : stream) {
    std::printf(
        "%-40s %-14s %-20s %s\n",
        name.c_str(),
        c10::toString(tensor.scalar_type()),
        shape_of(tensor).c_str(),
        mean_of(tensor).c_str());
  }
  const ckpt_streamer::StreamStats stats = stream.stats();
  std::printf(
      "%zu tensors, %zu bytes, at most %zu of them in memory at once\n",
      static_cast<size_t>(stats.tensors),
      static_cast<size_t>(stats.bytes_streamed),
      static_cast<size_t>(stats.peak_bytes_resident));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s <checkpoint> [<limit in MiB>]\n", argv[0]);
    return 2;
  }
  try {
    const uint64_t limit_mib = argc > 2 ? std::stoull(argv[2]) : 64;
    print_table(argv[1], limit_mib << 20);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
