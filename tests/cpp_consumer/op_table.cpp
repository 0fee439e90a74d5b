// Calls each op and each method through the C++ interface. Prints, for each row
// of tests/test_op_table.py, its name and what came of it, or the error:
//
//   op_table <checkpoint> <missing file> <empty file> <unsupported file>
#include <ATen/ATen.h>
#include <ATen/core/class_type.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/function.h>
#include <ckpt_streamer/load.h>
#include <ckpt_streamer/stream.h>

#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

namespace {

using ckpt_streamer::MemoryBudget;
using ckpt_streamer::Stream;

constexpr uint64_t kLimitBytes = 1 << 20;

std::string text(uint64_t value) {
  return std::to_string(value);
}

std::string text(const at::Tensor& tensor) {
  std::string values;
  for (const int64_t i : c10::irange(tensor.numel())) {
    values += (i > 0 ? " " : "") +
              std::to_string(tensor.flatten()[i].item<int64_t>());
  }
  return values;
}

std::string text(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) {
    joined += (joined.empty() ? "" : " ") + name;
  }
  return joined;
}

const char* class_of(const c10::Error& error) {
  return typeid(error) == typeid(c10::ValueError)   ? "ValueError"
         : typeid(error) == typeid(c10::IndexError) ? "IndexError"
         : typeid(error) == typeid(c10::NotImplementedError)
             ? "NotImplementedError"
             : "RuntimeError";
}

void row(const char* name, const std::function<std::string()>& body) {
  try {
    std::printf("%s\t%s\n", name, body().c_str());
  } catch (const c10::Error& error) {
    std::printf(
        "%s\t%s: %s\n",
        name,
        class_of(error),
        error.what_without_backtrace());
  }
}

Stream within(const std::string& path, const MemoryBudget& budget) {
  return ckpt_streamer::open(
      path,
      {.memory_limit_bytes = kLimitBytes, .budget = budget});
}

Stream open(const std::string& path) {
  return ckpt_streamer::open(path, {.memory_limit_bytes = kLimitBytes});
}

// All of it, in order.
std::string rest_of(Stream& stream) {
  std::string names;
  for (const auto& [name, tensor] : stream) {
    names += (names.empty() ? "" : " ") + name + "=" + text(tensor);
  }
  return names;
}

// A class without a header of its own: called as TorchScript calls it.
class Writer {
 public:
  Writer(
      const std::string& path,
      const c10::Dict<std::string, at::Tensor>& tensors) {
    const auto create = c10::Dispatcher::singleton().findSchemaOrThrow(
        "ckpt_streamer::create",
        "");
    torch::jit::Stack stack{
        path,
        tensors,
        static_cast<int64_t>(kLimitBytes),
        c10::IValue(),
        c10::IValue(),
        0,
        "error",
        false};
    create.callBoxed(&stack);
    writer_ = stack.front();
  }
  c10::IValue call(const char* method, torch::jit::Stack arguments) {
    arguments.insert(arguments.begin(), writer_);
    return writer_.type()->expectRef<c10::ClassType>().getMethod(method)(
        std::move(arguments));
  }

 private:
  c10::IValue writer_;
};

void print_rows(
    const std::string& path,
    const std::string& missing,
    const std::string& empty,
    const std::string& unsupported) {
  const c10::Dict<std::string, at::Tensor> given;
  given.insert("a", at::ones({2}));
  const auto parameters = [] {
    c10::Dict<std::string, at::Tensor> made;
    made.insert("a", at::zeros({2}, at::kLong));
    made.insert("d", at::zeros({1}));
    return made;
  };
  row("open", [&] {
    Stream stream = open(path);
    return rest_of(stream);
  });
  row("open select", [&] {
    Stream stream = ckpt_streamer::open(
        path,
        {.memory_limit_bytes = kLimitBytes, .select = {{"[bc]"}}});
    return rest_of(stream);
  });
  row("open dtype", [&] {
    Stream stream = ckpt_streamer::open(
        path,
        {.memory_limit_bytes = kLimitBytes,
         .dtype = at::kBFloat16,
         .verify = true});
    return std::string(toString(stream.tensor("c").scalar_type()));
  });
  row("open.paths", [&] {
    Stream stream =
        ckpt_streamer::open({path, path}, {.memory_limit_bytes = kLimitBytes});
    return text(stream.size());
  });
  row("open missing", [&] { return text(open(missing).size()); });
  row("open empty", [&] { return text(open(empty).size()); });
  row("open unsupported", [&] { return text(open(unsupported).size()); });
  row("open no limit", [&] {
    return text(ckpt_streamer::open(path, {.memory_limit_bytes = 0}).size());
  });
  row("open no match", [&] {
    return text(ckpt_streamer::open(path, {.select = {{"x*"}}}).size());
  });
  row("stream", [&] {
    Stream stream = ckpt_streamer::stream(given);
    return rest_of(stream);
  });
  row("stream no limit", [&] {
    return text(ckpt_streamer::stream(given, {.memory_limit_bytes = 0}).size());
  });
  row("open budget", [&] {
    const MemoryBudget budget(8388608);
    Stream first = within(path, budget);
    Stream second = within(path, budget);
    const std::string names = first.next().name + second.next().name;
    const std::string held = text(budget.bytes_held());
    return names + " " + held + " " + text(first.has_next()) +
           text(second.has_next());
  });
  row("open budget without room", [&] {
    const MemoryBudget budget(4194304);
    Stream first = within(path, budget);
    Stream second = within(path, budget);
    const std::string name = first.next().name;
    return name + second.next().name;
  });
  row("open drop_page_cache", [&] {
    Stream stream = ckpt_streamer::open(
        path,
        {.memory_limit_bytes = kLimitBytes, .drop_page_cache = true});
    return rest_of(stream);
  });
  row("copy_", [&] {
    at::Tensor destination = at::zeros({2}, at::kLong);
    return text(ckpt_streamer::copy_(destination, at::ones({2}), kLimitBytes));
  });
  row("copy_ shape", [&] {
    at::Tensor destination = at::zeros({2});
    return text(ckpt_streamer::copy_(destination, at::ones({3}), kLimitBytes));
  });
  row("default_memory_limit_bytes",
      [&] { return text(ckpt_streamer::default_memory_limit_bytes() > 0); });
  row("load_into", [&] {
    const auto state = parameters();
    const auto [absent, unexpected] =
        ckpt_streamer::load_into(state, path, {.memory_limit_bytes = 4096});
    return text(state.at("a")) + "; " + text(absent) + "; " + text(unexpected);
  });
  row("load_into.paths", [&] {
    const auto state = parameters();
    (void)ckpt_streamer::load_into(state, std::vector<std::string>{path});
    return text(state.at("a"));
  });
  row("load_into strict", [&] {
    (void)ckpt_streamer::load_into(parameters(), path, {.strict = true});
    return std::string();
  });
  const std::string target = path + ".safetensors";
  row("create", [&] {
    c10::Dict<std::string, at::Tensor> tensors;
    tensors.insert("a", at::ones({2}));
    tensors.insert("b", at::zeros({3}));
    Writer writer(target, tensors);
    writer.call("write", {"b", at::full({3}, 7.0)});
    writer.call("write", {"a", tensors.at("a")});
    const c10::List<c10::IValue> files = writer.call("finish", {}).toList();
    Stream stream = open(files.get(0).toStringRef());
    return text(files.size()) + "; " + rest_of(stream);
  });
  row("create unknown", [&] {
    Writer(target, given).call("write", {"x", at::ones({2})});
    return std::string();
  });
  row("create unfinished", [&] {
    return text(Writer(target, given).call("finish", {}).toListRef().size());
  });
  row("load_into budget", [&] {
    const MemoryBudget budget(8388608);
    c10::Dict<std::string, at::Tensor> state;
    state.insert("a", at::zeros({2}, at::kLong));
    (void)ckpt_streamer::load_into(
        state,
        path,
        {.memory_limit_bytes = kLimitBytes, .budget = budget});
    return text(state.at("a")) + "; " + text(budget.bytes_held());
  });
  row("limit_bytes", [&] { return text(MemoryBudget(8388608).limit_bytes()); });
  row("limit_bytes too small",
      [&] { return text(MemoryBudget(4096).limit_bytes()); });
  row("bytes_held", [&] {
    const MemoryBudget budget(8388608);
    Stream stream = within(path, budget);
    const uint64_t before = budget.bytes_held();
    (void)stream.next();
    const uint64_t held = budget.bytes_held();
    stream.release();
    return text(before) + " " + text(held) + " " + text(budget.bytes_held());
  });
  row("has_next", [&] {
    Stream stream = open(path);
    const bool before = stream.has_next();
    (void)rest_of(stream);
    return text(before) + " " + text(stream.has_next());
  });
  row("next", [&] {
    const auto [name, tensor] = open(path).next();
    return name + "=" + text(tensor);
  });
  row("next past the end", [&] {
    Stream stream = open(path);
    (void)rest_of(stream);
    return stream.next().name;
  });
  row("tensor", [&] { return text(open(path).tensor("b")); });
  row("tensor unknown", [&] { return text(open(path).tensor("x")); });
  row("slice", [&] { return text(open(path).slice("b", 1, 3)); });
  row("slice outside", [&] { return text(open(path).slice("b", 1, 9)); });
  row("release", [&] {
    Stream stream = open(path);
    const auto [name, tensor] = stream.next();
    stream.release();
    return text(tensor) + "; " + rest_of(stream);
  });
  row("reset", [&] {
    Stream stream = open(path);
    (void)stream.next();
    stream.reset();
    return stream.next().name;
  });
  row("__len__", [&] { return text(open(path).size()); });
  row("bytes_streamed", [&] {
    Stream stream = open(path);
    (void)rest_of(stream);
    return text(stream.stats().bytes_streamed);
  });
  row("bytes_evicted", [&] {
    Stream stream = open(path);
    return text(stream.stats().bytes_evicted);
  });
  row("bytes_resident", [&] {
    Stream stream = open(path);
    (void)rest_of(stream);
    return text(stream.stats().bytes_resident);
  });
  row("peak_bytes_resident", [&] {
    Stream stream = open(path);
    (void)rest_of(stream);
    return text(stream.stats().peak_bytes_resident <= kLimitBytes);
  });
  row("stats", [&] {
    Stream stream = open(path);
    (void)stream.next();
    const ckpt_streamer::StreamStats stats = stream.stats();
    return text(stats.tensors) + " " + text(stats.tensors_yielded) + " " +
           text(stats.memory_limit_bytes) + " " + text(stats.bytes_over_limit);
  });
  row("not_held", [&] {
    Stream stream = open(path);
    (void)rest_of(stream);
    return "'" + stream.stats().not_held + "'";
  });
  row("notes",
      [&] { return "'" + ckpt_streamer::stream(given).stats().notes + "'"; });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    return 2;
  }
  try {
    print_rows(argv[1], argv[2], argv[3], argv[4]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
