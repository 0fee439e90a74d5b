// Uses all of the C++ interface and prints what the tests compare:
//
//   cpp_consumer stream <checkpoint> <memory_limit_bytes>
//   cpp_consumer load <checkpoint> <memory_limit_bytes> <module> [strict]
//   cpp_consumer errors <checkpoint> <missing file>
//   cpp_consumer write <checkpoint> <memory_limit_bytes> <new file>
//   cpp_consumer write_errors <new file> <file in a missing folder>
#include <ATen/ATen.h>
#include <ckpt_streamer/jit.h>
#include <ckpt_streamer/load.h>
#include <ckpt_streamer/stream.h>
#include <ckpt_streamer/write.h>
#include <torch/script.h>

#include <concepts>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <iterator>
#include <ranges>
#include <string>
#include <type_traits>
#include <utility>

namespace {

using ckpt_streamer::CheckpointWriter;
using ckpt_streamer::NamedTensor;
using ckpt_streamer::Stream;

static_assert(std::ranges::input_range<Stream>);
static_assert(std::movable<Stream> && !std::copyable<Stream>);
static_assert(
    std::movable<CheckpointWriter> && !std::copyable<CheckpointWriter>);
static_assert(
    std::same_as<std::ranges::range_reference_t<Stream>, const NamedTensor&>);

double sum_of(const at::Tensor& tensor) {
  return tensor.to(at::kDouble).sum().item<double>();
}

void print(const char* name, double value) {
  std::printf("%s=%.17g\n", name, value);
}

void print(const char* name, const std::string& value) {
  std::printf("%s=%s\n", name, value.c_str());
}

void stream(const std::string& path, uint64_t memory_limit_bytes) {
  double sum = 0;
  size_t count = 0;
  for (const auto& [name, tensor] :
       ckpt_streamer::open(path, {.memory_limit_bytes = memory_limit_bytes})) {
    sum += sum_of(tensor);
    ++count;
  }
  print("sum", sum);
  print("count", static_cast<double>(count));

  // Left and entered again; looked up; moved.
  Stream first = ckpt_streamer::open(
      {path},
      {.memory_limit_bytes = memory_limit_bytes,
       .dtype = at::kBFloat16,
       .select = {{"w*"}}});
  std::string left_at;
  for (const NamedTensor& item : first) {
    left_at = item.name;
    break;
  }
  Stream stream = std::move(first);
  double rest = 0;
  size_t rest_count = 0;
  for (const auto& [name, tensor] : stream) {
    TORCH_CHECK(tensor.scalar_type() == at::kBFloat16, "not converted");
    rest += sum_of(tensor);
    ++rest_count;
  }
  print("left_at", left_at);
  print("rest", rest);
  print("rest_count", static_cast<double>(rest_count));
  print("looked_up", sum_of(stream.tensor("w3")));
  print("slice", sum_of(stream.slice("w3", 1, 3)));
  stream.release();
  const ckpt_streamer::StreamStats stats = stream.stats();
  print("size", static_cast<double>(stream.size()));
  print("tensors", static_cast<double>(stats.tensors));
  print("tensors_yielded", static_cast<double>(stats.tensors_yielded));
  print("limit", static_cast<double>(stats.memory_limit_bytes));
  print("bytes_streamed", static_cast<double>(stats.bytes_streamed));
  print("bytes_resident", static_cast<double>(stats.bytes_resident));
  print("peak", static_cast<double>(stats.peak_bytes_resident));
  print("not_held", stats.not_held);

  // Tensors in memory, and the same stream in other hands.
  stream.reset();
  c10::Dict<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : stream) {
    tensors.insert(name, tensor);
  }
  Stream of_dict = ckpt_streamer::stream(tensors);
  Stream same = Stream::from_ivalue(of_dict.to_ivalue());
  (void)of_dict.next();
  (void)same.next();
  print("yielded_by_both", static_cast<double>(same.stats().tensors_yielded));
  at::Tensor destination = at::zeros({256, 1024}, at::kDouble);
  ckpt_streamer::copy_(destination, stream.tensor("w5"), memory_limit_bytes);
  print("copied", sum_of(destination));
}

void load(
    const std::string& path,
    uint64_t memory_limit_bytes,
    const std::string& module_path,
    bool strict) {
  torch::jit::Module module = ckpt_streamer::jit_load(module_path);
  const c10::Dict<std::string, at::Tensor> state =
      ckpt_streamer::state_of(module);
  const auto [missing, unexpected] = ckpt_streamer::load_into(
      state,
      path,
      {.memory_limit_bytes = memory_limit_bytes, .strict = strict});
  for (const std::string& name : missing) {
    print("missing", name);
  }
  for (const std::string& name : unexpected) {
    print("unexpected", name);
  }
  for (const auto& entry : state) {
    print(entry.key().c_str(), sum_of(entry.value()));
  }
}

template <typename Error>
void expect(const char* name, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    TORCH_CHECK(typeid(error) == typeid(Error), name, ": another class");
    print(name, error.what_without_backtrace());
    return;
  }
  TORCH_CHECK(false, name, ": no error");
}

void errors(const std::string& path, const std::string& missing) {
  expect<c10::Error>("missing_file", [&] {
    (void)ckpt_streamer::open(missing);
  });
  expect<c10::ValueError>("no_limit", [&] {
    (void)ckpt_streamer::open(path, {.memory_limit_bytes = 0});
  });
  expect<c10::ValueError>("no_match", [&] {
    (void)ckpt_streamer::open(path, {.select = {{"x"}}});
  });
  expect<c10::ValueError>("integer_dtype", [&] {
    (void)ckpt_streamer::open(path, {.dtype = at::kInt});
  });
  expect<c10::TypeError>("no_stream", [&] {
    (void)Stream::from_ivalue(c10::IValue(1));
  });
  Stream stream = ckpt_streamer::open(path, {.memory_limit_bytes = ~0ull});
  expect<c10::ValueError>("no_tensor", [&] { (void)stream.tensor("x"); });
  expect<c10::IndexError>("slice", [&] { (void)stream.slice("w0", 1, 999); });
  while (stream.has_next()) {
    (void)stream.next();
  }
  expect<c10::IndexError>("past_the_end", [&] { (void)stream.next(); });
}

void write(
    const std::string& path,
    uint64_t memory_limit_bytes,
    const std::string& target) {
  Stream source =
      ckpt_streamer::open(path, {.memory_limit_bytes = memory_limit_bytes});
  c10::Dict<std::string, at::Tensor> declared;
  const at::TensorOptions half_on_meta =
      at::TensorOptions(at::kHalf).device(at::kMeta);
  for (const auto& [name, tensor] : source) {
    declared.insert(name, at::empty_like(tensor, half_on_meta));
  }
  CheckpointWriter first = ckpt_streamer::create(
      target,
      declared,
      {.memory_limit_bytes = memory_limit_bytes,
       .metadata = {{"made by", "C++"}}});
  CheckpointWriter writer = std::move(first);
  CheckpointWriter same = CheckpointWriter::from_ivalue(writer.to_ivalue());
  source.reset();
  size_t count = 0;
  for (const auto& [name, tensor] : source) {
    (++count % 2 == 0 ? writer : same).write(name, tensor);
  }
  print("size_bytes", static_cast<double>(writer.size_bytes()));
  print("bytes_written", static_cast<double>(writer.bytes_written()));
  print("before", std::filesystem::exists(target) ? "1" : "0");
  for (const std::string& file : writer.finish()) {
    print("files", file);
  }
  same.close();
  print("peak", static_cast<double>(source.stats().peak_bytes_resident));

  // What goes without finish() leaves nothing; tied tensors, in two files.
  const std::filesystem::path folder =
      std::filesystem::path(target).parent_path();
  const at::Tensor tied = at::ones({64});
  c10::Dict<std::string, at::Tensor> state;
  state.insert("a", tied);
  state.insert("b", tied);
  state.insert("c", at::ones({64}));
  {
    CheckpointWriter left = ckpt_streamer::create(folder / "left.pt", state);
    left.write("a", tied);
  }
  CheckpointWriter shards = ckpt_streamer::create(
      folder / "tied.pt",
      state,
      {.shard_size_bytes = 256, .drop_page_cache = true});
  for (const auto& entry : state) {
    shards.write(entry.key(), entry.value());
  }
  print("tied_files", shards.finish().front());
}

void write_errors(const std::string& target, const std::string& nowhere) {
  const at::Tensor ones = at::ones({2});
  c10::Dict<std::string, at::Tensor> declared;
  declared.insert("a", ones);
  c10::Dict<std::string, at::Tensor> tied = declared.copy();
  tied.insert("b", ones);
  c10::Dict<std::string, at::Tensor> sparse;
  sparse.insert("a", ones.to_sparse());
  expect<c10::ValueError>("no_limit", [&] {
    (void)ckpt_streamer::create(target, declared, {.memory_limit_bytes = 0});
  });
  expect<c10::ValueError>("no_format", [&] {
    (void)ckpt_streamer::create(target, declared, {.format = "x"});
  });
  expect<c10::ValueError>("no_tied", [&] {
    (void)ckpt_streamer::create(target, declared, {.tied = "x"});
  });
  expect<c10::ValueError>("tied", [&] {
    (void)ckpt_streamer::create(target, tied);
  });
  expect<c10::NotImplementedError>("sparse", [&] {
    (void)ckpt_streamer::create(target, sparse);
  });
  expect<c10::Error>("nowhere", [&] {
    (void)ckpt_streamer::create(nowhere, declared);
  });
  expect<c10::TypeError>("no_writer", [&] {
    (void)CheckpointWriter::from_ivalue(
        ckpt_streamer::stream(declared).to_ivalue());
  });
  CheckpointWriter writer = ckpt_streamer::create(target, declared);
  expect<c10::ValueError>("undeclared", [&] { writer.write("x", ones); });
  expect<c10::ValueError>("shape", [&] { writer.write("a", at::ones({3})); });
  expect<c10::ValueError>("unfinished", [&] { writer.finish(); });
  writer.close();
  expect<c10::ValueError>("closed", [&] { (void)writer.size_bytes(); });
}

int run(const std::string& what, int argc, char** argv) {
  if (what == "stream" && argc == 4) {
    stream(argv[2], std::stoull(argv[3]));
  } else if (what == "load" && argc >= 5) {
    load(argv[2], std::stoull(argv[3]), argv[4], argc > 5);
  } else if (what == "errors" && argc == 4) {
    errors(argv[2], argv[3]);
  } else if (what == "write" && argc == 5) {
    write(argv[2], std::stoull(argv[3]), argv[4]);
  } else if (what == "write_errors" && argc == 4) {
    write_errors(argv[2], argv[3]);
  } else {
    return 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return argc < 2 ? 2 : run(argv[1], argc, argv);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s\n", error.what_without_backtrace());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 1;
}
