#include "ops/writer_handle.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "format/text.h"
#include "ops/errors.h"
#include "ops/scalar_types.h"
#include "ops/strided_view.h"

namespace ckpt_streamer::ops {
namespace {

using format::CheckpointIndex;
using format::kNoStorage;
using format::TensorKind;

TensorKind kind_of(const at::Tensor& tensor) {
  if (tensor.is_quantized()) {
    return TensorKind::kQuantized;
  }
  if (tensor.is_nested()) {
    return TensorKind::kNested;
  }
  return tensor.layout() == at::kStrided ? TensorKind::kStrided
                                         : TensorKind::kSparse;
}

std::string description(at::ScalarType dtype, c10::IntArrayRef sizes) {
  std::ostringstream out;
  out << c10::getDtypeNames(dtype).first << " " << sizes;
  return out.str();
}

// What tensors are, as if they were read from a file: which share a storage,
// and how they view it.
class Declarations {
 public:
  Declarations(const std::string& path, CheckpointIndex& index)
      : path_(path), index_(index) {}

  [[nodiscard]] format::TensorRecord record(
      const std::string& name,
      const at::Tensor& tensor) {
    format::TensorRecord record;
    const auto dtype = dtype_of(tensor.scalar_type());
    if (!dtype.has_value()) {
      throw CheckpointError(
          ErrorKind::kUnsupported,
          path_,
          "the tensor " + format::quoted(name) + " is of the dtype " +
              std::string(c10::getDtypeNames(tensor.scalar_type()).first) +
              ", which no checkpoint holds");
    }
    record.dtype = *dtype;
    record.kind = kind_of(tensor);
    record.requires_grad = tensor.requires_grad();
    if (record.kind != TensorKind::kStrided) {
      return record;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(
        tensor.has_storage(),
        path_,
        ": the tensor ",
        format::quoted(name),
        " has no storage, expected a plain tensor");
    TORCH_CHECK_VALUE(
        tensor.dim() <= 64,
        path_,
        ": the tensor ",
        format::quoted(name),
        " has ",
        tensor.dim(),
        " dimensions, expected at most 64");
    record.is_conjugate = tensor.is_conj();
    record.is_negative = tensor.is_neg();
    record.dim_count = static_cast<uint8_t>(tensor.dim());
    record.storage_offset_elements =
        static_cast<uint64_t>(tensor.storage_offset());
    record.dims_begin = index_.dims.size();
    for (const c10::IntArrayRef dims : {tensor.sizes(), tensor.strides()}) {
      index_.dims.insert(index_.dims.end(), dims.begin(), dims.end());
    }
    record.storage_index = storage(tensor.storage());
    return record;
  }

 private:
  uint32_t storage(const c10::Storage& storage) {
    const auto [found, is_new] = storages_.emplace(
        storage.unsafeGetStorageImpl(),
        static_cast<uint32_t>(index_.storages.size()));
    if (is_new) {
      index_.storages.push_back({{0, storage.nbytes()}, 0});
    }
    return found->second;
  }

  const std::string& path_;
  CheckpointIndex& index_;
  std::unordered_map<const c10::StorageImpl*, uint32_t> storages_;
};

std::vector<format::MetadataEntry> entries_of(const Texts& texts) {
  std::vector<format::MetadataEntry> entries;
  for (const auto& text : texts) {
    entries.push_back({text.key(), text.value()});
  }
  return entries;
}

uint64_t checked_shard_size(int64_t shard_size_bytes) {
  TORCH_CHECK_VALUE(
      shard_size_bytes >= 0,
      "shard_size_bytes is ",
      shard_size_bytes,
      ", expected a number of bytes, or 0 for one file");
  return static_cast<uint64_t>(shard_size_bytes);
}

c10::intrusive_ptr<WriterHandle> make_handle(
    const std::string& path,
    const CheckpointIndex& index,
    std::span<const uint32_t> slots,
    std::vector<std::string> names,
    const write::PlanOptions& options,
    write::Opaque opaque,
    bool drop_page_cache,
    uint64_t memory_limit_bytes) {
  auto plan = write::make_plan(path, index, slots, std::move(names), options);
  return c10::make_intrusive<WriterHandle>(
      std::make_unique<write::CheckpointWriter>(
          path,
          options.format,
          std::move(plan),
          opaque,
          drop_page_cache ? os::OutputFile::Cache::kDrop
                          : os::OutputFile::Cache::kKeep),
      memory_limit_bytes);
}

}  // namespace

WriterHandle::WriterHandle(
    std::unique_ptr<write::CheckpointWriter> writer,
    uint64_t memory_limit_bytes)
    : writer_(std::move(writer)),
      path_(writer_->path()),
      elements_(memory_limit_bytes),
      is_written_(writer_->plan().names.size(), false) {}

write::CheckpointWriter& WriterHandle::open_writer() {
  TORCH_CHECK_VALUE(
      writer_ != nullptr,
      path_,
      ": the writer is closed, expected one that is neither closed nor "
      "finished");
  return *writer_;
}

void WriterHandle::write(const std::string& name, const at::Tensor& tensor) {
  const std::lock_guard lock(mutex_);
  const std::vector<std::string>& names = open_writer().plan().names;
  if (positions_.empty()) {
    for (size_t i = 0; i < names.size(); ++i) {
      positions_.emplace(names[i], i);
    }
  }
  const auto found = positions_.find(name);
  TORCH_CHECK_VALUE(
      found != positions_.end(),
      path_,
      ": there is no tensor ",
      format::quoted(name),
      " to write, expected one of the ",
      names.size(),
      " that were declared");
  with_torch_errors([&] { write_at(found->second, tensor); });
}

void WriterHandle::write_from(
    int64_t begin,
    const c10::List<at::Tensor>& tensors) {
  const std::lock_guard lock(mutex_);
  const size_t count = open_writer().plan().names.size();
  TORCH_CHECK_INDEX(
      begin >= 0 && static_cast<size_t>(begin) <= count &&
          tensors.size() <= count - static_cast<size_t>(begin),
      "tensors [",
      begin,
      ", ",
      begin + static_cast<int64_t>(tensors.size()),
      ") of ",
      count);
  with_torch_errors([&] {
    for (size_t i = 0; i < tensors.size(); ++i) {
      write_at(static_cast<size_t>(begin) + i, tensors.get(i));
    }
  });
}

void WriterHandle::check_matches(size_t position, const at::Tensor& tensor)
    const {
  const write::Plan& plan = writer_->plan();
  const write::Placement& placement = plan.placements[position];
  const auto sizes = plan.sizes(placement);
  const at::ScalarType dtype = scalar_type_of(placement.dtype);
  const bool is_convertible =
      tensor.scalar_type() == dtype ||
      (c10::isFloatingType(dtype) && Conversion(dtype).changes(tensor));
  TORCH_CHECK_VALUE(
      tensor.sizes() == c10::IntArrayRef(sizes.data(), sizes.size()) &&
          is_convertible && kind_of(tensor) == TensorKind::kStrided,
      path_,
      ": the tensor ",
      format::quoted(plan.names[position]),
      kind_of(tensor) == TensorKind::kStrided ? " is " : " is not strided, ",
      description(tensor.scalar_type(), tensor.sizes()),
      ", expected the ",
      description(dtype, {sizes.data(), sizes.size()}),
      " that was declared");
  TORCH_CHECK_VALUE(
      !is_written_[position],
      path_,
      ": the tensor ",
      format::quoted(plan.names[position]),
      " is written a second time, expected each once");
}

at::Tensor WriterHandle::span_of(size_t position, const at::Tensor& tensor)
    const {
  const write::Plan& plan = writer_->plan();
  const write::Placement& placement = plan.placements[position];
  const auto strides = plan.strides(placement);
  const int64_t begin =
      tensor.storage_offset() - static_cast<int64_t>(placement.offset_elements);
  const auto elements = static_cast<int64_t>(placement.storage_elements);
  TORCH_CHECK_VALUE(
      tensor.has_storage() &&
          tensor.strides() ==
              c10::IntArrayRef(strides.data(), strides.size()) &&
          begin >= 0 &&
          static_cast<uint64_t>(begin + elements) * tensor.element_size() <=
              tensor.storage().nbytes(),
      path_,
      ": the tensor ",
      format::quoted(plan.names[position]),
      " has the strides ",
      tensor.strides(),
      " from element ",
      tensor.storage_offset(),
      " of its storage, expected the view of ",
      elements,
      " elements that was declared, with the strides ",
      c10::IntArrayRef(strides.data(), strides.size()));
  at::Tensor span = strided_view(
      tensor.storage(),
      tensor.scalar_type(),
      begin,
      {elements},
      {int64_t{1}});
  // The file says that what lies there is conjugated or negated, as declared.
  if (tensor.is_conj() != placement.is_conjugate) {
    span = span.conj();
  }
  if (tensor.is_neg() != placement.is_negative) {
    span = span._neg_view();
  }
  return span;
}

// What was written of the storage may be another tensor's, converted or not.
void WriterHandle::check_not_begun(size_t position) const {
  const write::Plan& plan = writer_->plan();
  const uint32_t storage = plan.placements[position].storage;
  const uint64_t written_bytes = writer_->written_bytes(storage);
  TORCH_CHECK_VALUE(
      written_bytes == 0,
      path_,
      ": the tensor ",
      format::quoted(plan.names[position]),
      " shares memory with one that could not be written on from byte ",
      written_bytes,
      " of ",
      plan.storages[storage].size_bytes,
      ", expected another writer after that");
}

void WriterHandle::write_at(size_t position, const at::Tensor& tensor) {
  check_matches(position, tensor);
  const write::Placement& placement = writer_->plan().placements[position];
  if (placement.storage != kNoStorage &&
      !writer_->is_written(placement.storage)) {
    check_not_begun(position);
    elements_.hand_out(
        placement.is_span ? span_of(position, tensor) : tensor.detach(),
        scalar_type_of(placement.dtype),
        [&](std::span<const std::byte> bytes) {
          // From here on it cannot be written again, whatever fails.
          is_written_[position] = true;
          writer_->append(placement.storage, bytes);
          written_bytes_ += bytes.size();
        });
  }
  is_written_[position] = true;
}

int64_t WriterHandle::size_bytes() {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(open_writer().size_bytes());
}

int64_t WriterHandle::bytes_written() {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(written_bytes_);
}

std::vector<std::string> WriterHandle::finish() {
  const std::lock_guard lock(mutex_);
  write::CheckpointWriter& writer = open_writer();
  return with_torch_errors([&] {
    writer.finish();
    std::vector<std::string> paths = writer.paths();
    positions_.clear();
    writer_.reset();
    return paths;
  });
}

void WriterHandle::close() {
  const std::lock_guard lock(mutex_);
  positions_.clear();
  writer_.reset();
}

c10::intrusive_ptr<WriterHandle> create(
    const std::string& path,
    const c10::Dict<std::string, at::Tensor>& tensors,
    int64_t memory_limit_bytes,
    const std::optional<std::string>& format,
    const std::optional<Texts>& metadata,
    int64_t shard_size_bytes,
    const std::string& tied,
    bool drop_page_cache) {
  const uint64_t limit_bytes = checked_limit(memory_limit_bytes);
  return with_torch_errors([&] {
    write::PlanOptions options;
    options.format = write::format_of(path, format);
    options.tied = write::tied_of(path, tied);
    options.shard_size_bytes = checked_shard_size(shard_size_bytes);
    if (metadata.has_value()) {
      options.metadata = entries_of(*metadata);
    }
    CheckpointIndex index;
    Declarations declarations(path, index);
    std::vector<std::string> names;
    for (const auto& entry : tensors) {
      names.push_back(entry.key());
      index.tensors.push_back(declarations.record(entry.key(), entry.value()));
      index.slots.emplace_back().tensor_index =
          static_cast<uint32_t>(index.tensors.size() - 1);
    }
    return make_handle(
        path,
        index,
        index.all_slots(),
        std::move(names),
        options,
        write::Opaque::kError,
        drop_page_cache,
        limit_bytes);
  });
}

std::vector<at::Tensor> without_data(
    const c10::intrusive_ptr<SlotList>& slots,
    const std::vector<std::string>& names,
    const std::string& path) {
  const size_t count = slots->slots().size();
  TORCH_CHECK_VALUE(
      names.size() == count,
      names.size(),
      " names of ",
      count,
      " tensors");
  const CheckpointIndex& index = slots->index();
  const auto record = [&](size_t i) -> const format::TensorRecord& {
    return index.tensors[index.slots[slots->slots()[i]].tensor_index];
  };
  return with_torch_errors([&] {
    for (size_t i = 0; i < count; ++i) {
      write::check_is_strided(path, names[i], record(i).kind);
    }
    std::vector<at::Tensor> tensors;
    tensors.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      at::Tensor& tensor = tensors.emplace_back(
          at::empty_strided(
              index.sizes(record(i)),
              index.strides(record(i)),
              at::device(at::kMeta).dtype(scalar_type_of(record(i).dtype))));
      tensor._set_conj(record(i).is_conjugate);
      tensor._set_neg(record(i).is_negative);
    }
    return tensors;
  });
}

c10::intrusive_ptr<WriterHandle> create_from_slots(
    const c10::intrusive_ptr<SlotList>& slots,
    std::vector<std::string> names,
    const std::optional<std::vector<at::Tensor>>& templates,
    bool keeps_tree,
    const std::string& path,
    int64_t memory_limit_bytes,
    const std::optional<std::string>& format,
    std::optional<at::ScalarType> dtype,
    const Texts& metadata,
    int64_t shard_size_bytes,
    const std::string& tied,
    const std::string& opaque,
    bool drop_page_cache) {
  const uint64_t limit_bytes = checked_limit(memory_limit_bytes);
  const size_t count = slots->slots().size();
  TORCH_CHECK_VALUE(
      names.size() == count && (!templates || templates->size() == count),
      names.size(),
      " names of ",
      count,
      " tensors");
  (void)Conversion(dtype);  // refuses others
  return with_torch_errors([&] {
    write::PlanOptions options;
    options.format = write::format_of(path, format);
    options.dtype = dtype.has_value() ? dtype_of(*dtype) : std::nullopt;
    options.tied = write::tied_of(path, tied);
    options.keeps_tree = keeps_tree;
    options.shard_size_bytes = checked_shard_size(shard_size_bytes);
    options.metadata = entries_of(metadata);
    const write::Opaque how = write::opaque_of(path, opaque);
    const CheckpointIndex* index = &slots->index();
    CheckpointIndex declared;
    if (templates.has_value()) {
      declared = *index;
      Declarations declarations(path, declared);
      for (size_t i = 0; i < count; ++i) {
        format::Slot& slot = declared.slots[slots->slots()[i]];
        const format::TensorRecord source = declared.tensors[slot.tensor_index];
        format::TensorRecord record =
            declarations.record(names[i], (*templates)[i]);
        record.is_parameter = source.is_parameter;
        record.requires_grad = source.requires_grad;
        if (!keeps_tree) {  // one that has two names is two tensors then
          slot.tensor_index = static_cast<uint32_t>(declared.tensors.size());
          declared.tensors.emplace_back();
        }
        declared.tensors[slot.tensor_index] = record;
      }
      index = &declared;
    }
    return make_handle(
        path,
        *index,
        slots->slots(),
        std::move(names),
        options,
        how,
        drop_page_cache,
        limit_bytes);
  });
}

}  // namespace ckpt_streamer::ops
