// Tensors that the caller has in memory, streamed under their own names.
#pragma once

#include <ATen/core/Dict.h>

#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/storage_holders.h"
#include "ops/tensor_source.h"

namespace ckpt_streamer::ops {

class DictSource final : public TensorSource {
 public:
  // Holds the tensors (not copies) for as long as it lives.
  explicit DictSource(const c10::Dict<std::string, at::Tensor>& tensors);

  [[nodiscard]] std::vector<ByteRange> spans() const override {
    return spans_;
  }
  [[nodiscard]] uint64_t source_address(size_t index) const override {
    return spans_[index].begin;
  }
  [[nodiscard]] std::string name(size_t index) const override {
    return entries_[index].first;
  }
  [[nodiscard]] at::Tensor tensor(size_t index) override {
    return entries_[index].second;
  }
  [[nodiscard]] size_t find(const std::string& name) override;
  [[nodiscard]] std::vector<ByteRange> take_moved() override {
    return holders_.take_moved();
  }
  void check_unchanged() const override {}

 private:
  std::vector<std::pair<std::string, at::Tensor>> entries_;
  std::vector<ByteRange> spans_;
  // By the names in entries_; made by the first find().
  std::unordered_map<std::string_view, size_t> positions_;
  StorageHolders holders_;
};

}  // namespace ckpt_streamer::ops
