#include "format/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/checked_math.h"
#include "base/error.h"
#include "format/json.h"
#include "format/little_endian.h"
#include "format/name_index.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

// tensor.rs, N_LEN.
constexpr uint64_t kPrefixBytes = 8;
constexpr uint64_t kLargestHeaderBytes = kLargestSafetensorsHeaderBytes;

// ATen's dim_bitset_size: what most operators of torch take.
constexpr size_t kLargestDimCount = 64;

constexpr uint64_t kLargestInt64 = std::numeric_limits<int64_t>::max();

struct DTypeName {
  std::string_view name;
  uint64_t item_bits;
  std::optional<DType> dtype;  // none: torch has none
};

// tensor.rs, Dtype and bitsize(); bindings/python/src/lib.rs, get_pydtype.
constexpr std::array<DTypeName, 22> kDTypeNames{{
    {"BOOL", 8, DType::kBool},
    {"F4", 4, DType::kFloat4E2M1FNX2},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"U8", 8, DType::kUInt8},
    {"I8", 8, DType::kInt8},
    {"F8_E5M2", 8, DType::kFloat8E5M2},
    {"F8_E4M3", 8, DType::kFloat8E4M3FN},
    {"F8_E8M0", 8, DType::kFloat8E8M0FNU},
    {"F8_E4M3FNUZ", 8, DType::kFloat8E4M3FNUZ},
    {"F8_E5M2FNUZ", 8, DType::kFloat8E5M2FNUZ},
    {"I16", 16, DType::kInt16},
    {"U16", 16, DType::kUInt16},
    {"F16", 16, DType::kFloat16},
    {"BF16", 16, DType::kBFloat16},
    {"I32", 32, DType::kInt32},
    {"U32", 32, DType::kUInt32},
    {"F32", 32, DType::kFloat32},
    {"C64", 64, DType::kComplex64},
    {"F64", 64, DType::kFloat64},
    {"I64", 64, DType::kInt64},
    {"U64", 64, DType::kUInt64},
}};

const DTypeName* find_dtype(std::string_view name) noexcept {
  const auto* const found = std::find_if(
      kDTypeNames.begin(),
      kDTypeNames.end(),
      [&](const DTypeName& dtype) { return dtype.name == name; });
  return found == kDTypeNames.end() ? nullptr : found;
}

std::string dtype_list() {
  std::string names;
  for (const DTypeName& dtype : kDTypeNames) {
    names += (names.empty() ? "" : ", ") + std::string(dtype.name);
  }
  return names;
}

// What the header says of a tensor, before it is checked.
struct Declaration {
  std::string_view name;
  const DTypeName* dtype = nullptr;
  std::vector<uint64_t> shape;
  ByteRange data_range;       // as in the header: from the data's first byte
  uint64_t entry_offset = 0;  // in the file, of its JSON
};

class HeaderReader {
 public:
  HeaderReader(const ByteSource& source, std::string_view header)
      : source_(source),
        data_begin_(kPrefixBytes + header.size()),
        json_(header, {source.path(), "the header", kPrefixBytes}) {}

  CheckpointIndex read() {
    FileRecord file{source_.path(), {}};
    bool has_metadata = false;
    json_.enter_object("the header");
    while (const auto name = json_.next_name()) {
      if (*name != "__metadata__") {
        read_tensor(*name);
      } else if (std::exchange(has_metadata, true)) {
        fail("has '__metadata__' twice, expected it once", json_.file_offset());
      } else {
        read_metadata(file.metadata);
      }
    }
    json_.set_subject({}, {});
    json_.expect_end();
    check_distinct_names();
    check_layout();
    index_.files.push_back(std::move(file));
    return std::move(index_);
  }

 private:
  void read_metadata(std::vector<MetadataEntry>& metadata);
  void read_tensor(std::string_view name);
  void read_shape(Declaration& declaration);
  void read_data_offsets(Declaration& declaration);
  void add_tensor(const Declaration& declaration);
  void add_dims(const Declaration& declaration, TensorRecord& tensor);
  void check_size(const Declaration& declaration) const;
  void check_distinct_names() const;
  void check_layout() const;

  [[nodiscard]] std::string_view name_of(size_t slot_index) const {
    return index_.values.text(index_.slots[slot_index].key);
  }
  [[noreturn]] void fail(const std::string& what, uint64_t file_offset) const {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source_.path(),
        what + " in the header",
        file_offset);
  }
  [[noreturn]] void fail_tensor(
      ErrorKind kind,
      const Declaration& declaration,
      const std::string& what) const {
    throw CheckpointError(
        kind,
        source_.path(),
        "tensor " + quoted(declaration.name) + " " + what + " in the header",
        declaration.entry_offset);
  }

  const ByteSource& source_;
  const uint64_t data_begin_;  // in the file
  JsonReader json_;
  Declaration declaration_;  // of the tensor that is read
  CheckpointIndex index_;
  std::vector<uint32_t> entry_offsets_;  // in the header; beside index_.slots
};

// tensor.rs, HashMetadata: Option<HashMap<String, String>>.
void HeaderReader::read_metadata(std::vector<MetadataEntry>& metadata) {
  const uint64_t begin = json_.file_offset();
  if (json_.peek("__metadata__") == JsonKind::kNull) {
    json_.skip_value("__metadata__");
    return;
  }
  json_.enter_object("__metadata__");
  std::vector<std::string_view> names;
  while (const auto name = json_.next_name()) {
    json_.set_subject("the metadata", *name);
    metadata.push_back(
        {std::string(*name), std::string(json_.read_string("the value"))});
    names.push_back(*name);
  }
  json_.set_subject({}, {});
  const NameIndex distinct(std::move(names));
  if (distinct.duplicate().has_value()) {
    fail(
        "has the metadata " +
            quoted(metadata[distinct.duplicate()->first].name) +
            " twice, expected distinct names",
        begin);
  }
}

void HeaderReader::read_tensor(std::string_view name) {
  enum Field : uint8_t { kDType, kShape, kDataOffsets, kFieldCount };
  constexpr std::array<std::string_view, kFieldCount> kFieldNames{
      "dtype",
      "shape",
      "data_offsets"};
  Declaration& declaration = declaration_;
  declaration.name = name;
  declaration.entry_offset = json_.file_offset();
  json_.set_subject("tensor", name);
  json_.enter_object("the value");
  std::array<bool, kFieldCount> is_read{};
  while (const auto field_name = json_.next_name()) {
    const auto* const found =
        std::find(kFieldNames.begin(), kFieldNames.end(), *field_name);
    if (found == kFieldNames.end()) {
      json_.skip_value("a field");
      continue;
    }
    const auto field = static_cast<size_t>(found - kFieldNames.begin());
    if (std::exchange(is_read[field], true)) {
      fail_tensor(
          ErrorKind::kCorrupt,
          declaration,
          "has " + quoted(*field_name) + " twice, expected it once");
    }
    switch (field) {
      case kDType: {
        const std::string_view dtype = json_.read_string("the dtype");
        declaration.dtype = find_dtype(dtype);
        if (declaration.dtype == nullptr) {
          fail_tensor(
              ErrorKind::kCorrupt,
              declaration,
              "has the dtype " + quoted(dtype) + ", expected one of " +
                  dtype_list());
        }
        break;
      }
      case kShape:
        read_shape(declaration);
        break;
      default:
        read_data_offsets(declaration);
    }
  }
  for (size_t field = 0; field < kFieldCount; ++field) {
    if (!is_read[field]) {
      fail_tensor(
          ErrorKind::kCorrupt,
          declaration,
          "has no " + quoted(kFieldNames[field]) +
              ", expected dtype, shape and data_offsets");
    }
  }
  add_tensor(declaration);
}

void HeaderReader::read_shape(Declaration& declaration) {
  declaration.shape.clear();
  json_.enter_array("the shape");
  while (json_.next_element()) {
    if (declaration.shape.size() == kLargestDimCount) {
      fail_tensor(
          ErrorKind::kUnsupported,
          declaration,
          "has more than " + std::to_string(kLargestDimCount) +
              " dimensions, expected at most as many");
    }
    declaration.shape.push_back(json_.read_count("a size"));
  }
}

void HeaderReader::read_data_offsets(Declaration& declaration) {
  std::array<uint64_t, 2> offsets{};
  size_t count = 0;
  json_.enter_array("the data_offsets");
  while (json_.next_element()) {
    const uint64_t offset = json_.read_count("a data offset");
    if (count < offsets.size()) {
      offsets[count] = offset;
    }
    ++count;
  }
  if (count != offsets.size()) {
    fail_tensor(
        ErrorKind::kCorrupt,
        declaration,
        "has " + std::to_string(count) +
            " data_offsets, expected 2, where it begins and ends");
  }
  declaration.data_range = {offsets[0], offsets[1]};
  if (offsets[0] > offsets[1]) {
    fail_tensor(
        ErrorKind::kCorrupt,
        declaration,
        "ends at byte " + std::to_string(offsets[1]) +
            " of the data, expected at or behind byte " +
            std::to_string(offsets[0]) + ", where it begins");
  }
  const uint64_t data_bytes = source_.size_bytes() - data_begin_;
  if (offsets[1] > data_bytes) {
    fail_tensor(
        ErrorKind::kCorrupt,
        declaration,
        "ends at byte " + std::to_string(offsets[1]) +
            " of the data, expected at most its " + std::to_string(data_bytes) +
            " bytes");
  }
}

void HeaderReader::add_tensor(const Declaration& declaration) {
  check_size(declaration);
  if (!declaration.dtype->dtype.has_value()) {
    fail_tensor(
        ErrorKind::kUnsupported,
        declaration,
        "has the dtype " + std::string(declaration.dtype->name) +
            ", which torch does not have; expected one that it has");
  }
  TensorRecord tensor;
  tensor.dtype = *declaration.dtype->dtype;
  tensor.storage_index = static_cast<uint32_t>(index_.storages.size());
  add_dims(declaration, tensor);
  index_.storages.push_back(
      {{data_begin_ + declaration.data_range.begin,
        data_begin_ + declaration.data_range.end},
       0});
  index_.add_named_slot(
      declaration.name,
      static_cast<uint32_t>(index_.tensors.size()));
  index_.tensors.push_back(tensor);
  entry_offsets_.push_back(
      static_cast<uint32_t>(declaration.entry_offset - kPrefixBytes));
}

// tensor.rs, Metadata::validate.
void HeaderReader::check_size(const Declaration& declaration) const {
  std::optional<uint64_t> bits = 1;
  for (const uint64_t size : declaration.shape) {
    bits = bits.has_value() ? checked_mul(*bits, size) : std::nullopt;
  }
  if (bits.has_value()) {
    bits = checked_mul(*bits, declaration.dtype->item_bits);
  }
  if (!bits.has_value()) {
    fail_tensor(
        ErrorKind::kCorrupt,
        declaration,
        "has sizes whose product overflows, expected less than 2^64 bits");
  }
  if (*bits % 8 != 0) {
    fail_tensor(
        ErrorKind::kCorrupt,
        declaration,
        "has " + std::to_string(*bits) + " bits, expected whole bytes");
  }
  const uint64_t found_bytes = declaration.data_range.size_bytes();
  if (*bits / 8 != found_bytes) {
    fail_tensor(
        ErrorKind::kCorrupt,
        declaration,
        "has " + std::to_string(found_bytes) + " bytes, expected the " +
            std::to_string(*bits / 8) + " of its shape and dtype " +
            std::string(declaration.dtype->name));
  }
}

// Row-major strides. Sizes beside a size of 0 are not bounded by the bytes.
void HeaderReader::add_dims(
    const Declaration& declaration,
    TensorRecord& tensor) {
  std::vector<int64_t>& dims = index_.dims;
  tensor.dims_begin = dims.size();
  tensor.dim_count = static_cast<uint8_t>(declaration.shape.size());
  for (const uint64_t size : declaration.shape) {
    dims.push_back(static_cast<int64_t>(size));
  }
  if (tensor.dtype == DType::kFloat4E2M1FNX2) {
    // bindings/python/src/lib.rs, torch_storage_shape.
    if (declaration.shape.empty() || declaration.shape.back() % 2 != 0) {
      fail_tensor(
          ErrorKind::kUnsupported,
          declaration,
          "has the dtype F4 and no even last size, expected an even one for "
          "torch's float4_e2m1fn_x2");
    }
    dims.back() /= 2;
  }
  dims.resize(dims.size() + tensor.dim_count);
  uint64_t stride = 1;
  for (size_t dim = tensor.dim_count; dim-- > 0;) {
    const auto size = static_cast<uint64_t>(dims[tensor.dims_begin + dim]);
    const auto next = checked_mul(stride, std::max<uint64_t>(size, 1));
    if (!next.has_value() || *next > kLargestInt64) {
      fail_tensor(
          ErrorKind::kUnsupported,
          declaration,
          "has no element and sizes whose product overflows, expected less "
          "than 2^63");
    }
    dims[tensor.dims_begin + tensor.dim_count + dim] =
        static_cast<int64_t>(stride);
    stride = *next;
  }
  index_.share_dims(tensor);
}

void HeaderReader::check_distinct_names() const {
  std::vector<std::string_view> names;
  names.reserve(index_.slots.size());
  for (size_t i = 0; i < index_.slots.size(); ++i) {
    names.push_back(name_of(i));
  }
  const NameIndex distinct(std::move(names));
  if (distinct.duplicate().has_value()) {
    const uint32_t second = distinct.duplicate()->second;
    fail(
        "has the tensor " + quoted(name_of(second)) +
            " twice, expected distinct names",
        kPrefixBytes + entry_offsets_[second]);
  }
}

// The data is covered whole: no holes, no overlaps, nothing behind the last.
void HeaderReader::check_layout() const {
  std::vector<uint32_t> order(index_.storages.size());
  std::iota(order.begin(), order.end(), uint32_t{0});
  const auto is_before = [&](uint32_t left, uint32_t right) {
    const ByteRange& a = index_.storages[left].file_range;
    const ByteRange& b = index_.storages[right].file_range;
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  };
  if (!std::is_sorted(order.begin(), order.end(), is_before)) {
    std::sort(order.begin(), order.end(), is_before);
  }
  std::optional<uint32_t> previous;
  uint64_t covered_end = data_begin_;
  for (const uint32_t i : order) {
    const ByteRange& range = index_.storages[i].file_range;
    if (range.begin != covered_end) {
      fail(
          "tensor " + quoted(name_of(i)) + " begins at byte " +
              std::to_string(range.begin - data_begin_) +
              " of the data, expected byte " +
              std::to_string(covered_end - data_begin_) + ", where " +
              (previous.has_value() ? quoted(name_of(*previous)) + " ends"
                                    : "the data begins"),
          kPrefixBytes + entry_offsets_[i]);
    }
    covered_end = range.end;
    previous = i;
  }
  if (covered_end != source_.size_bytes()) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source_.path(),
        "the last tensor ends at byte " + std::to_string(covered_end) +
            ", expected byte " + std::to_string(source_.size_bytes()) +
            ", the file's end",
        covered_end);
  }
}

uint64_t header_size_of(std::string_view head) noexcept {
  return load_u64(reinterpret_cast<const std::byte*>(head.data()));
}

}  // namespace

std::string_view safetensors_dtype_name(DType dtype) noexcept {
  const auto* const found = std::find_if(
      kDTypeNames.begin(),
      kDTypeNames.end(),
      [&](const DTypeName& known) { return known.dtype == dtype; });
  return found == kDTypeNames.end() ? std::string_view() : found->name;
}

bool is_safetensors(std::string_view head, uint64_t file_size_bytes) noexcept {
  if (head.size() < kPrefixBytes + 2) {
    return false;
  }
  const uint64_t header_bytes = header_size_of(head);
  const char first = head[kPrefixBytes];
  const char second = head[kPrefixBytes + 1];
  if (first == '{') {
    return header_bytes <= kLargestHeaderBytes || second == '"' ||
           second == '}';
  }
  // The reference lets white space pass; the format's text does not.
  return (first == ' ' || first == '\n' || first == '\t' || first == '\r') &&
         header_bytes <= file_size_bytes - kPrefixBytes;
}

CheckpointIndex read_safetensors(const ByteSource& source) {
  if (source.size_bytes() < kPrefixBytes) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        "has " + std::to_string(source.size_bytes()) +
            " bytes, expected at least the 8 that hold the header's size",
        0);
  }
  std::array<std::byte, kPrefixBytes> prefix{};
  source.read(0, prefix);
  const uint64_t header_bytes = load_u64(prefix.data());
  if (header_bytes > kLargestHeaderBytes) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        "has a header of " + std::to_string(header_bytes) +
            " bytes, expected at most " + std::to_string(kLargestHeaderBytes),
        0);
  }
  const uint64_t available_bytes = source.size_bytes() - kPrefixBytes;
  if (header_bytes > available_bytes) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        "has a header of " + std::to_string(header_bytes) +
            " bytes, expected at most the " + std::to_string(available_bytes) +
            " behind its size",
        0);
  }
  const auto buffer = std::make_unique_for_overwrite<char[]>(header_bytes);
  const std::span<char> header(buffer.get(), header_bytes);
  source.read(kPrefixBytes, std::as_writable_bytes(header));
  if (header.empty() || header.front() != '{') {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        "has a header that begins with " +
            (header.empty() ? "nothing"
                            : hex_bytes(std::as_bytes(header.first(1)))) +
            ", expected '{' (7b)",
        kPrefixBytes);
  }
  return HeaderReader(source, {header.data(), header.size()}).read();
}

}  // namespace ckpt_streamer::format
