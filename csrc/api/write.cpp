#include "ckpt_streamer/write.h"

#include "api/handle_value.h"
#include "api/op_limit.h"
#include "ops/writer_handle.h"

namespace ckpt_streamer {
inline namespace v1 {

using Handle = c10::intrusive_ptr<ops::WriterHandle>;

struct WriterAccess {
  static CheckpointWriter make(Handle handle) {
    return CheckpointWriter(std::move(handle));
  }
  static ops::WriterHandle& handle(const CheckpointWriter& writer) {
    return static_cast<ops::WriterHandle&>(*writer.handle_);
  }
};

namespace {

ops::WriterHandle& handle_of(const CheckpointWriter& writer) {
  return WriterAccess::handle(writer);
}

}  // namespace

CheckpointWriter::CheckpointWriter(
    c10::intrusive_ptr<c10::intrusive_ptr_target> handle)
    : handle_(std::move(handle)) {}
CheckpointWriter::CheckpointWriter(CheckpointWriter&& other) noexcept = default;
CheckpointWriter& CheckpointWriter::operator=(
    CheckpointWriter&& other) noexcept = default;
CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::write(
    const std::string& name,
    const at::Tensor& tensor) {
  handle_of(*this).write(name, tensor);
}

uint64_t CheckpointWriter::size_bytes() const {
  return static_cast<uint64_t>(handle_of(*this).size_bytes());
}

uint64_t CheckpointWriter::bytes_written() const {
  return static_cast<uint64_t>(handle_of(*this).bytes_written());
}

std::vector<std::string> CheckpointWriter::finish() {
  return handle_of(*this).finish();
}

void CheckpointWriter::close() {
  handle_of(*this).close();
}

c10::IValue CheckpointWriter::to_ivalue() const {
  return Handle::reclaim_copy(&handle_of(*this));
}

CheckpointWriter CheckpointWriter::from_ivalue(const c10::IValue& handle) {
  return WriterAccess::make(
      handle_of_value<ops::WriterHandle>(handle, "CheckpointWriter"));
}

CheckpointWriter create(
    const std::string& path,
    const c10::Dict<std::string, at::Tensor>& tensors,
    const CreateOptions& options) {
  ops::Texts metadata;
  for (const auto& [name, text] : options.metadata) {
    metadata.insert_or_assign(name, text);
  }
  return WriterAccess::make(
      ops::create(
          path,
          tensors,
          op_limit(options.memory_limit_bytes),
          options.format,
          metadata,
          op_limit(options.shard_size_bytes),
          options.tied,
          options.drop_page_cache));
}

}  // namespace v1
}  // namespace ckpt_streamer
