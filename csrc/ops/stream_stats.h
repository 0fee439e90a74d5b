// The figures of a stream, under the same words in Python, TorchScript and C++.
#pragma once

#include <ATen/core/Dict.h>

#include <cstdint>
#include <string>

#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {

// memory_limit_bytes, windows_entered, bytes_streamed, bytes_evicted,
// bytes_prefetched, bytes_resident, peak_bytes_resident, bytes_over_limit and
// bytes_written: see StreamStats in ckpt_streamer/_stats.py.
[[nodiscard]] c10::Dict<std::string, int64_t> stats_of(
    const stream::StreamFigures& figures,
    uint64_t streamed_bytes,
    uint64_t resident_bytes,
    uint64_t written_bytes);

// What could not be held within the limit, and why, in words; empty if all was.
[[nodiscard]] std::string not_held(const stream::StreamFigures& figures);

// What else there is to know of it, in words: tensors that nothing bounds, and
// file systems that are no disks. Empty if there is nothing.
[[nodiscard]] std::string notes(const stream::MemoryKinds& bytes);

}  // namespace ckpt_streamer::ops
