// torch.ops.ckpt_streamer.load_into: a checkpoint's tensors into tensors that
// are there already, within a memory limit.
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/memory_budget.h"

namespace ckpt_streamer::ops {

using MissingAndUnexpected =
    std::tuple<std::vector<std::string>, std::vector<std::string>>;

// Copies each tensor of the file into the parameter of its name, in the order
// of the file, without gradients: versions are bumped, dtypes and devices are
// the parameters'. No more than the limit of the file is resident at any
// instant, however large a tensor, and nothing in the end. With
// `drop_page_cache`, the kernel's cached copy counts and goes as well. Of a
// `budget`, half of what is left is taken for the call.
//
// `prefix` is what names in the file begin with and lose, as "state_dict.";
// others are left out. Without one, it is that with which most parameters are
// found, the shortest if it stands in front of the others.
//
// Returns the names of parameters that the file does not have, in the order of
// `parameters`, and of tensors that `parameters` does not have, in that of the
// file. With `strict`, either is an error.
//
// Everything is checked before anything is copied. THROWS: c10::ValueError
// unless the limit is positive; for a tensor of another shape than its
// parameter (but for one element of one dimension, which is taken for none); a
// parameter on the meta device; a name that several tensors of the file have;
// several prefixes with which most are found; missing and unexpected names with
// `strict`. Then: whatever copy_ throws, with the name of the tensor; as
// StreamHandle::next(). What was copied by then stays.
MissingAndUnexpected load_into(
    const c10::Dict<std::string, at::Tensor>& parameters,
    const std::string& path,
    int64_t memory_limit_bytes,
    const std::optional<std::string>& prefix,
    bool strict,
    bool verify,
    bool drop_page_cache,
    const OptionalBudget& budget);

// The same of several files, whose names do not repeat.
MissingAndUnexpected load_files_into(
    const c10::Dict<std::string, at::Tensor>& parameters,
    const std::vector<std::string>& paths,
    int64_t memory_limit_bytes,
    const std::optional<std::string>& prefix,
    bool strict,
    bool verify,
    bool drop_page_cache,
    const OptionalBudget& budget);

}  // namespace ckpt_streamer::ops
