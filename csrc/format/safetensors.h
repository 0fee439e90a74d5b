// What a safetensors file means: 8 bytes that hold the header's size, the
// header, a JSON object of tensors, and their bytes, one behind the other.
//
// Facts are from safetensors 0.8: "Format" in README.md, and
// safetensors/src/tensor.rs (SafeTensors::read_metadata, Metadata::validate,
// Dtype). Everything is little-endian and row-major.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/byte_source.h"
#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

// Whether a file that begins with `head`, its first 10 bytes or more, is meant
// to be one, sound or not.
[[nodiscard]] bool is_safetensors(
    std::string_view head,
    uint64_t file_size_bytes) noexcept;

// The slots are the tensors in the header's order, one storage for each; the
// one file's metadata is the header's __metadata__.
//
// F4 is torch's float4_e2m1fn_x2, whose last dimension is half as long; F6_E2M3
// and F6_E3M2 have no torch dtype. Tensors need not be aligned to their
// elements.
//
// ENSURES: the tensors' bytes cover the file behind the header without holes
// and overlaps; each has as many as its shape and dtype take.
// THROWS: CheckpointError Corrupt for whatever the reference refuses, and
// besides, as the format's text has it, for names that repeat and for a header
// that does not begin with '{'; also for a tensor that is a JSON array instead
// of an object, which the reference takes. Unsupported for tensors of more than
// 64 dimensions and of a dtype that torch has not.
// Cost: O(header) time (O(n log n) for hostile names) and memory; the header
// is at most 100 MB. No tensor byte is read.
[[nodiscard]] CheckpointIndex read_safetensors(const ByteSource& source);

// "BF16"; empty for a dtype that the format does not have.
[[nodiscard]] std::string_view safetensors_dtype_name(DType dtype) noexcept;

// Of the header, at most. tensor.rs, MAX_HEADER_SIZE.
inline constexpr uint64_t kLargestSafetensorsHeaderBytes = 100'000'000;

}  // namespace ckpt_streamer::format
