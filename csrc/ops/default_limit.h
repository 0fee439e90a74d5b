// The limit that fits the machine and the container, for those who name none.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>

namespace ckpt_streamer::ops {

// torch.ops.ckpt_streamer.default_memory_limit_bytes(): as
// plan::default_limit_bytes() of what is available at the moment; the largest
// of all if the system does not tell. Cost: well below a millisecond.
int64_t default_memory_limit_bytes();

// The same, and why it is that, in words.
std::tuple<int64_t, std::string> explained_default_memory_limit();

}  // namespace ckpt_streamer::ops
