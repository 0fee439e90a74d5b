#include "ops/dict_source.h"

#include "base/error.h"
#include "ops/tensor_memory.h"

namespace ckpt_streamer::ops {

DictSource::DictSource(const c10::Dict<std::string, at::Tensor>& tensors) {
  std::vector<std::pair<std::string, at::Tensor>> given;
  std::vector<TensorMemory> memory;
  given.reserve(tensors.size());
  memory.reserve(tensors.size());
  for (const auto& entry : tensors) {
    given.emplace_back(entry.key(), entry.value());
    memory.push_back(memory_of(entry.value()));
  }
  entries_.reserve(given.size());
  spans_.reserve(given.size());
  for (const size_t index : stream_order(memory)) {
    entries_.push_back(std::move(given[index]));
    spans_.push_back(memory[index].span);
    holders_.add(entries_.back().second, spans_.back());
  }
}

size_t DictSource::find(const std::string& name) {
  if (positions_.empty()) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      positions_.emplace(entries_[i].first, i);
    }
  }
  const auto found = positions_.find(name);
  if (found == positions_.end()) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        "",
        "the dict has no tensor '" + name + "'");
  }
  return found->second;
}

}  // namespace ckpt_streamer::ops
