// Prints the schema of an op, which is there if the library is.
#include <ATen/core/dispatch/Dispatcher.h>

#include <iostream>

int main() {
  const auto op =
      c10::Dispatcher::singleton().findSchema({"ckpt_streamer::load_into", ""});
  std::cout << (op.has_value() ? toString(op->schema()) : "none") << "\n";
  return 0;
}
