// The tensors of a checkpoint, streamed in the order of its files.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/checkpoint_tensors.h"
#include "ops/tensor_source.h"

namespace ckpt_streamer::ops {

class FileSource final : public TensorSource {
 public:
  explicit FileSource(std::shared_ptr<const CheckpointTensors> checkpoint);

  [[nodiscard]] std::vector<ByteRange> spans() const override;
  [[nodiscard]] uint64_t source_address(size_t index) const override;
  [[nodiscard]] std::string name(size_t index) const override;
  // As CheckpointTensors::tensor().
  [[nodiscard]] at::Tensor tensor(size_t index) override;
  [[nodiscard]] uint64_t copied_bytes() const override {
    return checkpoint_->copied_bytes();
  }
  void check_readable() const override;

 private:
  std::shared_ptr<const CheckpointTensors> checkpoint_;
  std::vector<uint32_t> order_;  // of the index's slots
};

}  // namespace ckpt_streamer::ops
