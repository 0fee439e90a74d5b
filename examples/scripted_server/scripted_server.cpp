// Serves a TorchScript model without Python. The model streams its weights in
// by a method of its own, which ckpt_streamer.add_load_method() gave it:
//
//   scripted_server <model.pt> <limit in MiB>
//
// answers, line by line of its input:
//
//   load <checkpoint>    the weights of that file from now on
//   <numbers>            what the model makes of them
#include <ATen/ATen.h>
#include <torch/script.h>

#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace {

std::string answer(
    torch::jit::Module& model,
    int64_t memory_limit_bytes,
    const std::string& request) {
  std::istringstream words(request);
  std::ostringstream text;
  if (request.starts_with("load ")) {
    model.get_method("load")({request.substr(5), memory_limit_bytes});
    text << "loaded";
  } else {
    const std::vector<float> input(
        std::istream_iterator<float>(words),
        std::istream_iterator<float>{});
    const at::Tensor output = model.forward({at::tensor(input)}).toTensor();
    for (int64_t i = 0; i < output.numel(); ++i) {
      text << (i > 0 ? " " : "") << output[i].item<float>();
    }
  }
  return text.str();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " <model.pt> <limit in MiB>\n";
    return 2;
  }
  const c10::InferenceMode no_gradients;
  torch::jit::Module model = torch::jit::load(argv[1]);
  model.eval();
  const int64_t memory_limit_bytes = std::stoll(argv[2]) << 20;
  for (std::string request; std::getline(std::cin, request);) {
    try {
      std::cout << answer(model, memory_limit_bytes, request) << std::endl;
    } catch (const c10::Error& error) {
      std::cout << "error: " << error.what_without_backtrace() << std::endl;
    } catch (const std::exception& error) {  // of TorchScript's interpreter
      std::cout << "error: " << error.what() << std::endl;
    }
  }
  return 0;
}
