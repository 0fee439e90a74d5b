// The tensors of a checkpoint, streamed in the order of its files.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "format/slot_finder.h"
#include "ops/checkpoint_tensors.h"
#include "ops/tensor_source.h"

namespace ckpt_streamer::ops {

class FileSource final : public TensorSource {
 public:
  // With patterns, of the tensors whose names match one (format/name_glob.h).
  // THROWS: CheckpointError InvalidArgument for patterns that match none.
  FileSource(
      std::shared_ptr<const CheckpointTensors> checkpoint,
      const std::optional<std::vector<std::string>>& patterns);
  // Of those slots of its index.
  FileSource(
      std::shared_ptr<const CheckpointTensors> checkpoint,
      std::vector<uint32_t> slots);

  [[nodiscard]] std::vector<ByteRange> spans() const override;
  [[nodiscard]] uint64_t source_address(size_t index) const override;
  [[nodiscard]] std::string name(size_t index) const override;
  // As CheckpointTensors::tensor().
  [[nodiscard]] at::Tensor tensor(size_t index) override;
  [[nodiscard]] std::optional<ContiguousElements> elements(
      size_t index) const override;
  [[nodiscard]] uint64_t copied_bytes() const override {
    return checkpoint_->copied_bytes();
  }
  [[nodiscard]] size_t find(const std::string& name) override;
  void check_unchanged() const override;

 private:
  std::shared_ptr<const CheckpointTensors> checkpoint_;
  std::vector<uint32_t> order_;               // of the index's slots
  std::optional<format::SlotFinder> finder_;  // made by the first find()
};

}  // namespace ckpt_streamer::ops
