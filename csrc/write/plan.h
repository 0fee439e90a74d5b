// What is to be written, in full before the first byte is: which storages the
// files will hold, and which tensors are cut from them.
//
// A plan is the index that a reader of the files will find
// (format/checkpoint_index.h), in the making: a storage's file_range is [0, its
// size), and says where it lies only once the file is laid out. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "format/checkpoint_index.h"
#include "write/file_format.h"

namespace ckpt_streamer::write {

// What becomes of tensors that share memory where the format cannot say so.
enum class Tied : uint8_t {
  kError,  // refused
  kCopy,   // each is written for itself
  kOnce,   // the same view is written once, under its first name; the others'
           // names go to the metadata, with the first's, as
           // safetensors.torch.save_model has it. Other views are refused
};

// "error", "copy" or "once".
// THROWS: CheckpointError InvalidArgument for another text.
[[nodiscard]] Tied tied_of(const std::string& path, const std::string& text);

struct PlanOptions {
  FileFormat format = FileFormat::kSafetensors;
  // Of floating-point tensors; others stay as they are.
  std::optional<format::DType> dtype;
  Tied tied = Tied::kError;
  // Keeps the source's tree of values, with the tensors that are left out
  // missing from its dicts and None in its lists; else a dict of the names to
  // the tensors. Only for FileFormat::kTorch in one file.
  bool keeps_tree = false;
  // Of the tensors of a file; 0: all are in one. One tensor may be larger.
  uint64_t shard_size_bytes = 0;
  std::vector<format::MetadataEntry> metadata;
};

// Where a tensor's elements go.
struct Placement {
  uint32_t storage = format::kNoStorage;  // of the plan; kNoStorage: nowhere
  format::DType dtype = format::DType::kFloat32;  // that they are written in
  // Whether the storage holds the elements as they lie in memory, gaps
  // included, so that several views can share it; else in row-major order.
  bool is_span = false;
  // Of the tensor's first element in the storage; of row-major ones, 0.
  uint64_t offset_elements = 0;
  uint64_t storage_elements = 0;
  // As declared: of dtype, sizes and strides, in Plan::dims like a
  // TensorRecord, and, as the file says of spans, with either bit of a view.
  format::DType source_dtype = format::DType::kFloat32;
  bool is_conjugate = false;
  bool is_negative = false;
  uint8_t dim_count = 0;
  uint64_t dims_begin = 0;
};

struct PlannedFile {
  format::CheckpointIndex index;
  // By index.tensors, which may be empty: those that are missing.
  std::vector<bool> is_left_out;
};

struct PlannedStorage {
  uint32_t file = 0;     // in Plan::files
  uint32_t storage = 0;  // in its index
  uint64_t size_bytes = 0;
  uint32_t first_name = 0;  // in Plan::names, of a tensor that is cut from it
};

struct Plan {
  std::vector<PlannedFile> files;  // at least one
  std::vector<PlannedStorage> storages;
  std::vector<std::string> names;     // of the tensors, as given
  std::vector<Placement> placements;  // likewise
  std::vector<int64_t> dims;          // of the placements

  [[nodiscard]] std::span<const int64_t> sizes(
      const Placement& placement) const noexcept {
    return {dims.data() + placement.dims_begin, placement.dim_count};
  }
  [[nodiscard]] std::span<const int64_t> strides(
      const Placement& placement) const noexcept {
    return {
        dims.data() + placement.dims_begin + placement.dim_count,
        placement.dim_count};
  }
};

// THROWS: CheckpointError Unsupported, unless the tensor is strided. `path`:
// the target.
void check_is_strided(
    const std::string& path,
    const std::string& name,
    format::TensorKind kind);

// Of the slots of an index, under new names. `path`: the target, for errors.
// REQUIRES: as many names as slots.
// THROWS: CheckpointError InvalidArgument for names that repeat, hold a NUL or
// are not UTF-8, and as Tied says; Unsupported for tensors that are not
// strided, dtypes that the format does not have, and tensors of several dtypes
// that share memory. Cost: O(n log n).
[[nodiscard]] Plan make_plan(
    const std::string& path,
    const format::CheckpointIndex& source,
    std::span<const uint32_t> slots,
    std::vector<std::string> names,
    const PlanOptions& options);

}  // namespace ckpt_streamer::write
