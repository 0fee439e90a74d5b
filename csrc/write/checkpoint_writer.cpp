#include "write/checkpoint_writer.h"

#include <utility>

#include "base/error.h"
#include "format/text.h"
#include "write/text_buffer.h"

namespace ckpt_streamer::write {
namespace {

std::string five_digits(size_t number) {
  const std::string digits = std::to_string(number);
  return digits.size() < 5 ? std::string(5 - digits.size(), '0') + digits
                           : digits;
}

std::string name_of_file(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

}  // namespace

std::string shard_path(const std::string& path, size_t number, size_t count) {
  const size_t name = path.rfind('/') + 1;
  const size_t dot = path.rfind('.');
  const size_t end =
      dot == std::string::npos || dot <= name ? path.size() : dot;
  return path.substr(0, end) + "-" + five_digits(number) + "-of-" +
         five_digits(count) + path.substr(end);
}

std::string index_path(const std::string& path) {
  return path + ".index.json";
}

CheckpointWriter::CheckpointWriter(
    std::string path,
    FileFormat format,
    Plan plan,
    Opaque opaque,
    os::OutputFile::Cache cache)
    : path_(std::move(path)), plan_(std::move(plan)) {
  const size_t count = plan_.files.size();
  for (size_t i = 0; i < count; ++i) {
    file_paths_.push_back(count == 1 ? path_ : shard_path(path_, i + 1, count));
  }
  const auto existing = count == 1 ? os::OutputFile::Existing::kReplace
                                   : os::OutputFile::Existing::kRefuse;
  for (size_t i = 0; i < count; ++i) {
    File file;
    file.layout = make_layout(file_paths_[i], format, plan_.files[i], opaque);
    std::vector<uint64_t> sizes;
    for (const auto& storage : plan_.files[i].index.storages) {
      sizes.push_back(storage.file_range.size_bytes());
    }
    file.output = std::make_unique<os::OutputFile>(
        file_paths_[i],
        file.layout->size_bytes(),
        cache,
        existing);
    file.writer = std::make_unique<FileWriter>(
        *file.layout,
        std::move(sizes),
        *file.output);
    size_bytes_ += file.layout->size_bytes();
    files_.push_back(std::move(file));
  }
  if (count > 1) {
    index_text_ = index_text();
    index_ = std::make_unique<os::OutputFile>(
        index_path(path_),
        index_text_.size(),
        cache,
        os::OutputFile::Existing::kReplace);
  }
  // What is left to be known of the files is in their layouts.
  plan_.files.clear();
}

std::vector<std::string> CheckpointWriter::paths() const {
  std::vector<std::string> paths;
  if (index_ != nullptr) {
    paths.push_back(index_path(path_));
  }
  paths.insert(paths.end(), file_paths_.begin(), file_paths_.end());
  return paths;
}

// huggingface_hub, serialization/_torch.py, save_torch_state_dict.
std::string CheckpointWriter::index_text() const {
  uint64_t total_bytes = 0;
  for (const PlannedStorage& storage : plan_.storages) {
    total_bytes += storage.size_bytes;
  }
  std::string text = "{\n  \"metadata\": {\n    \"total_size\": " +
                     std::to_string(total_bytes) +
                     "\n  },\n  \"weight_map\": {";
  const char* separator = "\n    ";
  for (size_t i = 0; i < plan_.names.size(); ++i) {
    const uint32_t storage = plan_.placements[i].storage;
    if (storage == format::kNoStorage) {
      continue;
    }
    text += std::exchange(separator, ",\n    ");
    append_json_string(text, plan_.names[i]);
    text += ": ";
    append_json_string(
        text,
        name_of_file(file_paths_[plan_.storages[storage].file]));
  }
  return text + "\n  }\n}\n";
}

void CheckpointWriter::check_open() const {
  if (is_finished_) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        path_,
        "the writer is finished, expected one that is not");
  }
}

uint64_t CheckpointWriter::written_bytes(uint32_t storage) const noexcept {
  const PlannedStorage& planned = plan_.storages[storage];
  return is_finished_
             ? planned.size_bytes
             : files_[planned.file].writer->written_bytes(planned.storage);
}

bool CheckpointWriter::is_written(uint32_t storage) const noexcept {
  return written_bytes(storage) == plan_.storages[storage].size_bytes;
}

void CheckpointWriter::append(
    uint32_t storage,
    std::span<const std::byte> bytes) {
  check_open();
  const PlannedStorage& planned = plan_.storages[storage];
  FileWriter& writer = *files_[planned.file].writer;
  const uint64_t left = planned.size_bytes - written_bytes(storage);
  if (bytes.size() > left) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        file_paths_[planned.file],
        "the tensor " + format::quoted(plan_.names[planned.first_name]) +
            " has " + std::to_string(bytes.size()) +
            " more bytes, expected at most " + std::to_string(left) + " of " +
            std::to_string(planned.size_bytes));
  }
  writer.append(planned.storage, bytes);
}

void CheckpointWriter::finish() {
  check_open();
  for (uint32_t storage = 0; storage < plan_.storages.size(); ++storage) {
    const PlannedStorage& planned = plan_.storages[storage];
    const uint64_t written = written_bytes(storage);
    if (written != planned.size_bytes) {
      throw CheckpointError(
          ErrorKind::kInvalidArgument,
          file_paths_[planned.file],
          "the tensor " + format::quoted(plan_.names[planned.first_name]) +
              " has " + std::to_string(written) +
              " bytes, expected all of its " +
              std::to_string(planned.size_bytes) + " before finish()");
    }
  }
  for (const File& file : files_) {
    file.writer->finish();
  }
  for (const File& file : files_) {
    file.output->sync();
  }
  if (index_ != nullptr) {
    index_->write(0, std::as_bytes(std::span(index_text_)));
    index_->sync();
  }
  publish();
  is_finished_ = true;
  files_.clear();
}

// The index last: as long as it is not there, nobody looks for the others.
void CheckpointWriter::publish() {
  try {
    for (const File& file : files_) {
      file.output->publish();
    }
    if (index_ != nullptr) {
      files_.front().output->sync_folder();
      index_->publish();
    }
  } catch (...) {
    if (index_ != nullptr) {
      for (const File& file : files_) {
        file.output->withdraw();
      }
    }
    throw;
  }
  files_.front().output->sync_folder();
}

}  // namespace ckpt_streamer::write
