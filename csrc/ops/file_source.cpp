#include "ops/file_source.h"

#include <utility>

#include "format/name_glob.h"

namespace ckpt_streamer::ops {

FileSource::FileSource(
    std::shared_ptr<const CheckpointTensors> checkpoint,
    const std::optional<std::vector<std::string>>& patterns)
    : checkpoint_(std::move(checkpoint)),
      order_(checkpoint_->index().all_slots()) {
  if (patterns.has_value()) {
    order_ = format::matching_slots(checkpoint_->index(), order_, *patterns);
  }
  checkpoint_->sort_in_file_order(order_);
}

FileSource::FileSource(
    std::shared_ptr<const CheckpointTensors> checkpoint,
    std::vector<uint32_t> slots)
    : checkpoint_(std::move(checkpoint)), order_(std::move(slots)) {
  checkpoint_->sort_in_file_order(order_);
}

std::vector<ByteRange> FileSource::spans() const {
  std::vector<ByteRange> result;
  result.reserve(order_.size());
  for (const uint32_t slot : order_) {
    result.push_back(
        checkpoint_->span(checkpoint_->index().slots[slot].tensor_index));
  }
  return result;
}

uint64_t FileSource::source_address(size_t index) const {
  return checkpoint_->source_address(
      checkpoint_->index().slots[order_[index]].tensor_index);
}

std::string FileSource::name(size_t index) const {
  return checkpoint_->index().slot_name(order_[index]);
}

at::Tensor FileSource::tensor(size_t index) {
  return checkpoint_->tensor(
      checkpoint_->index().slots[order_[index]].tensor_index);
}

std::optional<ContiguousElements> FileSource::elements(size_t index) const {
  return checkpoint_->elements(
      checkpoint_->index().slots[order_[index]].tensor_index);
}

size_t FileSource::find(const std::string& name) {
  if (!finder_.has_value()) {
    finder_.emplace(checkpoint_->index(), order_);
  }
  return finder_->find_one(name);
}

void FileSource::check_unchanged() const {
  checkpoint_->check_unchanged();
}

}  // namespace ckpt_streamer::ops
