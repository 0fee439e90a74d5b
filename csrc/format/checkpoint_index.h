// What a checkpoint file holds, as plain values: storages (where the bytes
// are), tensors (how they are viewed), slots (under which names) and the tree
// of values that they stand in.
//
// Built by the format readers, consumed by stream/ and ops/. Holds no bytes of
// any tensor and no handle on the file. Safe to share between threads once
// built.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/byte_range.h"
#include "format/value_tree.h"

namespace ckpt_streamer::format {

// The element types of torch 2.13 that a checkpoint can name. The order is
// ours; ops/ maps it to torch's own numbers.
enum class DType : uint8_t {
  kUInt8,
  kInt8,
  kUInt16,
  kInt16,
  kUInt32,
  kInt32,
  kUInt64,
  kInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kComplex32,
  kComplex64,
  kComplex128,
  kBool,
  kFloat8E4M3FN,
  kFloat8E4M3FNUZ,
  kFloat8E5M2,
  kFloat8E5M2FNUZ,
  kFloat8E8M0FNU,
  kFloat4E2M1FNX2,  // two numbers in a byte, which is one element
  kInt1,            // this and those below: a byte for each element
  kInt2,
  kInt3,
  kInt4,
  kInt5,
  kInt6,
  kInt7,
  kUInt1,
  kUInt2,
  kUInt3,
  kUInt4,
  kUInt5,
  kUInt6,
  kUInt7,
  kBits1x8,
  kBits2x4,
  kBits4x2,
  kBits8,
  kBits16,
  kQInt8,
  kQUInt8,
  kQInt32,
  kQUInt4x2,  // two elements in a byte
  kQUInt2x4,  // four
};

inline constexpr DType kLastDType = DType::kQUInt2x4;

// Of an element; of the byte that elements share where they do.
[[nodiscard]] uint64_t item_size_bytes(DType dtype) noexcept;

// 1, but for dtypes whose elements share a byte.
[[nodiscard]] uint64_t elements_per_item(DType dtype) noexcept;

// The byte behind the first `element_count` elements of a storage; nullopt
// when it does not fit 64 bits.
[[nodiscard]] std::optional<uint64_t> end_byte_of_elements(
    DType dtype,
    uint64_t element_count) noexcept;

[[nodiscard]] bool is_quantized(DType dtype) noexcept;
[[nodiscard]] bool is_complex(DType dtype) noexcept;
// Floating-point or complex numbers.
[[nodiscard]] bool may_require_grad(DType dtype) noexcept;

// torch's name without the module: "float32", "bfloat16", "float8_e4m3fn".
[[nodiscard]] const char* dtype_name(DType dtype) noexcept;

// A text that the file keeps beside its tensors.
struct MetadataEntry {
  std::string name;
  std::string value;
};

// One file of the checkpoint.
struct FileRecord {
  std::string path;                     // as it was opened
  std::vector<MetadataEntry> metadata;  // in the order of the file
  uint32_t first_tensor = 0;  // in CheckpointIndex::tensors; all up to the next
};

// One run of bytes of a file; every tensor cut from it shares it in memory. By
// where it is, not by the name that the file may have for it: all names of a
// large checkpoint are more than the rest of its index.
struct StorageRecord {
  ByteRange file_range;     // absolute; [begin, end) lies inside the file
  uint32_t file_index = 0;  // in CheckpointIndex::files
  // Of its bytes; none where the file keeps none (base/crc32.h).
  std::optional<uint32_t> crc32 = {};
};

inline constexpr uint32_t kNoStorage = 0xFFFFFFFF;
inline constexpr uint32_t kNoTensor = 0xFFFFFFFF;

enum class TensorKind : uint8_t {
  kStrided,        // a view of a storage
  kQuantized,      // the same, with a quantizer
  kSparse,         // made of other tensors: indices and values
  kNested,         // of a buffer and where in it each tensor is
  kMeta,           // sizes and strides without data
  kArray,          // of an array in CheckpointIndex::values
  kUninitialized,  // a parameter whose shape is not known yet
};

// Sizes and strides are in elements and live in CheckpointIndex::dims: sizes
// first, then as many strides; tensors may share them. A sparse tensor's
// strides are all 0; a nested tensor has neither.
struct TensorRecord {
  uint32_t storage_index = kNoStorage;  // of a strided or quantized tensor
  uint32_t detail_index = 0;            // in the table of the kind, if any
  DType dtype = DType::kFloat32;
  TensorKind kind = TensorKind::kStrided;
  uint8_t dim_count = 0;
  bool requires_grad = false;
  bool is_parameter =
      false;  // pickled as one: torch.load gives an nn.Parameter
  bool is_conjugate = false;  // the values are the conjugates of the numbers
  bool is_negative = false;   // the values are the numbers' negatives
  uint64_t storage_offset_elements = 0;
  uint64_t dims_begin = 0;
};

// How a quantized tensor's elements are numbers: one scale and zero point, or
// one of each, in two vectors, for every position along the axis.
struct QuantizedRecord {
  double scale = 1;
  int64_t zero_point = 0;
  uint32_t scales = kNoTensor;  // in CheckpointIndex::tensors; so are all below
  uint32_t zero_points = kNoTensor;
  uint64_t axis = 0;
};

enum class SparseLayout : uint8_t { kCoo, kCsr, kCsc, kBsr, kBsc };

// That indices are inside the tensor can only be seen from the data: it is not
// checked here.
struct SparseRecord {
  SparseLayout layout = SparseLayout::kCoo;
  std::optional<bool> is_coalesced;    // COO only
  uint32_t indices = kNoTensor;        // compressed ones but for COO
  uint32_t plain_indices = kNoTensor;  // none for COO
  uint32_t values = kNoTensor;
};

// A row of sizes and strides for each tensor inside, which begins at an offset
// of the buffer's storage. Not checked here, as above.
struct NestedRecord {
  uint32_t buffer = kNoTensor;
  uint32_t sizes = kNoTensor;
  uint32_t strides = kNoTensor;
  uint32_t offsets = kNoTensor;
};

struct ArrayRecord {
  NodeId array = kNoNode;         // in CheckpointIndex::values
  DType dtype = DType::kFloat32;  // of the array, little-endian
};

inline constexpr uint32_t kNoPrefix = 0xFFFFFFFF;

// A container's name: its own part, a node of CheckpointIndex::values, behind
// that of another one in CheckpointIndex::prefixes.
struct NamePrefix {
  uint32_t parent = kNoPrefix;
  NodeId key = kNoNode;
};

// One place that holds a tensor. A tied tensor has one TensorRecord for each
// rebuild in the pickle and one slot for each place.
struct Slot {
  // The dict, list, tuple, set or object of CheckpointIndex::values that holds
  // it, and under which key: the key's own node, or an int for a position in a
  // list, tuple, set, or an object's items. A tensor that is an object's whole
  // state has no key; the root, and what is itself a key, neither.
  NodeId container = kNoNode;
  NodeId key = kNoNode;
  uint32_t prefix = kNoPrefix;  // in CheckpointIndex::prefixes
  uint32_t tensor_index = 0;
};

struct CheckpointIndex {
  std::vector<FileRecord> files;  // in the order of the stream
  // Of the index of shards through which the files were found; those of the
  // files themselves are with them.
  std::vector<MetadataEntry> metadata;
  // What the rest was read from, where that is records with checksums of their
  // own: an archive's pickles.
  std::vector<StorageRecord> read_records;
  std::vector<StorageRecord> storages;
  std::vector<TensorRecord> tensors;  // those that others are made of, too
  std::vector<QuantizedRecord> quantized;
  std::vector<SparseRecord> sparse;
  std::vector<NestedRecord> nested;
  std::vector<ArrayRecord> arrays;
  std::vector<Slot> slots;           // in traversal order
  std::vector<NamePrefix> prefixes;  // of the slots' containers
  std::vector<int64_t> dims;         // the sizes and strides of all tensors
  // Of one file, its values; of several, or one without values beside tensors
  // (safetensors, TorchScript), a dict of the slots' names to their tensors.
  ValueTree values;

  [[nodiscard]] std::span<const int64_t> sizes(
      const TensorRecord& tensor) const noexcept {
    return {dims.data() + tensor.dims_begin, tensor.dim_count};
  }
  [[nodiscard]] std::span<const int64_t> strides(
      const TensorRecord& tensor) const noexcept {
    return {
        dims.data() + tensor.dims_begin + tensor.dim_count,
        tensor.dim_count};
  }

  // Keys from the root joined by '.'; of a bare tensor: "".
  // REQUIRES: slot_index < slots.size(). Cost: O(name).
  [[nodiscard]] std::string slot_name(size_t slot_index) const;

  // Drops the dims of a tensor that is about to be added, which are the last,
  // where the tensor before has the same, and has it share those.
  void share_dims(TensorRecord& tensor);

  // The positions of all slots, ascending.
  [[nodiscard]] std::vector<uint32_t> all_slots() const;

  // Appends a slot to `values` as a dict of names to tensors.
  // REQUIRES: all slots were added so.
  void add_named_slot(std::string_view name, uint32_t tensor_index);

  // Moves the files of another index, with their tensors, behind those of this
  // one. Of its values only the tensors come along, under their slots' names.
  // REQUIRES: all slots of this one were added by this or by add_named_slot.
  // THROWS: CheckpointError Unsupported when numbers no longer fit 32 bits.
  void append(CheckpointIndex&& other);

  // Gives back what the vectors reserved.
  void shrink_to_fit();

  // The bytes of its file that the tensor's elements span, gaps included, and
  // those of all the tensors that it is made of; empty without elements in the
  // file.
  // REQUIRES: the index was validated by its reader.
  [[nodiscard]] ByteRange file_range(const TensorRecord& tensor) const noexcept;

  // The tensors that a sparse or nested one is made of, its values or buffer
  // among them; kNoTensor for fewer. All are strided, of one file.
  [[nodiscard]] std::array<uint32_t, 4> components(
      const TensorRecord& tensor) const noexcept;

  // The file that the tensor comes from, a position in `files`.
  // REQUIRES: tensor_index < tensors.size().
  [[nodiscard]] uint32_t file_index(uint32_t tensor_index) const noexcept;

 private:
  [[nodiscard]] ByteRange strided_range(
      const TensorRecord& tensor) const noexcept;
  // The length of the table that the kind's details are in.
  [[nodiscard]] size_t details_of(TensorKind kind) const noexcept;
};

}  // namespace ckpt_streamer::format
