#include "ckpt_streamer/jit.h"

#include "ops/jit_load.h"

namespace ckpt_streamer {
inline namespace v1 {

torch::jit::Module jit_load(
    const std::string& path,
    const JitLoadOptions& options) {
  return ops::jit_load(path, options.device, options.verify);
}

}  // namespace v1
}  // namespace ckpt_streamer
