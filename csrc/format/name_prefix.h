// Finds where in a checkpoint the tensors of a model are.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>

#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

// The prefix, empty or ending with '.', behind which most of the slots' names
// are among `names`; of several, the one that all of the others begin with.
// Empty if no slot's name ends with one of `names`.
// THROWS: CheckpointError InvalidArgument, naming the first file, for several
// of which none stands in front of the others.
// Cost: one look for each '.' of the slots' names.
[[nodiscard]] std::string find_prefix(
    const CheckpointIndex& index,
    std::span<const uint32_t> slots,
    const std::unordered_set<std::string_view>& names);

}  // namespace ckpt_streamer::format
