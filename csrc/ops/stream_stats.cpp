#include "ops/stream_stats.h"

#include <algorithm>
#include <system_error>

namespace ckpt_streamer::ops {
namespace {

uint64_t over_limit_bytes(const stream::StreamFigures& figures) {
  const uint64_t peak_bytes = figures.peak_resident_bytes;
  return std::max(
      peak_bytes - std::min(peak_bytes, figures.memory_limit_bytes),
      figures.over_share_bytes);
}

std::string reason(int error_number) {
  return " (" +
         std::error_code(error_number, std::generic_category()).message() + ")";
}

std::string not_held_of_cache(const stream::StreamFigures& figures) {
  if (figures.unreachable_bytes > 0) {
    return std::to_string(figures.unreachable_bytes) +
           " bytes were left in the kernel's cache: their file cannot be "
           "opened "
           "again, as it was replaced, moved or deleted, or the system does "
           "not "
           "tell which it is";
  }
  if (figures.undropped_cached_bytes > 0) {
    return std::to_string(figures.undropped_cached_bytes) +
           " bytes stayed in the kernel's cache: they are mapped by another "
           "process or stream, not yet written to disk, or on a file system "
           "that is memory itself, as tmpfs is";
  }
  return "";
}

}  // namespace

c10::Dict<std::string, int64_t> stats_of(
    const stream::StreamFigures& figures,
    uint64_t streamed_bytes,
    uint64_t resident_bytes,
    uint64_t written_bytes) {
  c10::Dict<std::string, int64_t> stats;
  const auto insert = [&](const char* name, uint64_t value) {
    stats.insert(name, static_cast<int64_t>(value));
  };
  insert("memory_limit_bytes", figures.memory_limit_bytes);
  insert("windows_entered", figures.windows_entered);
  insert("bytes_streamed", streamed_bytes);
  insert("bytes_evicted", figures.evicted_bytes);
  insert("bytes_prefetched", figures.prefetched_bytes);
  insert("bytes_resident", resident_bytes);
  insert("peak_bytes_resident", figures.peak_resident_bytes);
  insert("bytes_over_limit", over_limit_bytes(figures));
  insert("bytes_written", written_bytes);
  return stats;
}

std::string not_held(const stream::StreamFigures& figures) {
  if (over_limit_bytes(figures) == 0) {
    return not_held_of_cache(figures);
  }
  if (figures.drop_error != 0) {
    const uint64_t bytes =
        std::max(figures.undropped_bytes, over_limit_bytes(figures));
    return std::to_string(bytes) +
           " bytes of file pages could not be given back" +
           reason(figures.drop_error);
  }
  return std::to_string(over_limit_bytes(figures)) +
         " bytes came on top before pages were given back: a tensor is larger "
         "than the limit, or tensors were read again after their window";
}

std::string notes(const stream::MemoryKinds& bytes) {
  std::string text;
  const auto add = [&](uint64_t count, const std::string& what) {
    if (count > 0) {
      text += (text.empty() ? "" : "; ") + std::to_string(count) + what;
    }
  };
  const std::string mapped = " bytes are mapped from ";
  add(bytes.unmapped_bytes,
      " bytes of the tensors are no pages of a mapped file: nothing bounds "
      "them");
  add(bytes.memory_bytes,
      mapped +
          "a file system that is memory itself (tmpfs, ramfs): what is given "
          "back "
          "leaves this process, and stays charged to whoever wrote it");
  add(bytes.huge_page_bytes,
      mapped +
          "hugetlbfs, whose pages are memory itself and no part of what is "
          "counted as resident: the limit does not bound them");
  add(bytes.remote_bytes,
      mapped +
          "a file system that others serve (FUSE, NFS and the like): what is "
          "given "
          "back is asked for again there, and what is changed there may not be "
          "noticed");
  return text;
}

}  // namespace ckpt_streamer::ops
