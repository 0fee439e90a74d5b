// Trees of plain values and tensors as the pickle that torch.save makes of them
// (protocol 2): what torch.load(weights_only=True) takes, for all but complex
// numbers and integers of more than 255 bytes.
#pragma once

#include <cstdint>
#include <string>

#include "write/plan.h"

namespace ckpt_streamer::write {

// What becomes of values that only Python could write: objects, functions,
// numpy arrays.
enum class Opaque : uint8_t {
  kError,
  kDrop,  // missing from dicts, None elsewhere; a class derived from dict
          // becomes a dict
};

// "error" or "drop".
// THROWS: CheckpointError InvalidArgument for another text.
[[nodiscard]] Opaque opaque_of(
    const std::string& path,
    const std::string& text);

// data.pkl of a planned file: its tree, in which storage i has the key i.
// Containers and tensors that are one object stay one; an OrderedDict keeps its
// attributes. Tensors come as torch.Tensor or torch.nn.Parameter.
// THROWS: CheckpointError Unsupported, naming value and type, for what
// Opaque::kError refuses, for keys that are no plain values, and for a tuple
// that holds itself.
// Cost: O(values) time and memory; the pickle is made in memory.
[[nodiscard]] std::string write_pickle(
    const std::string& path,
    const PlannedFile& file,
    Opaque opaque);

}  // namespace ckpt_streamer::write
