// A checkpoint on its way to the disk: one file, or as many as its size asks
// for, with their index. Nothing is at the target before finish(), and then all
// of it.
//
// Of several files, model.safetensors becomes model-00001-of-00003.safetensors
// and so on, and model.safetensors.index.json. Files cannot be replaced
// together: shards that are there already are refused.
//
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "os/output_file.h"
#include "write/file_layout.h"
#include "write/file_writer.h"
#include "write/plan.h"

namespace ckpt_streamer::write {

class CheckpointWriter {
 public:
  // Lays the files out and reserves their space.
  // THROWS: CheckpointError as make_layout() and os::OutputFile; Io for shards
  // that are there already.
  CheckpointWriter(
      std::string path,
      FileFormat format,
      Plan plan,
      Opaque opaque,
      os::OutputFile::Cache cache);

  [[nodiscard]] const Plan& plan() const noexcept {
    return plan_;
  }
  [[nodiscard]] const std::string& path() const noexcept {
    return path_;
  }
  // Those that finish() leaves behind; the index first.
  [[nodiscard]] std::vector<std::string> paths() const;
  [[nodiscard]] uint64_t size_bytes() const noexcept {
    return size_bytes_;
  }

  // The next bytes of a storage of the plan. THROWS: CheckpointError
  // InvalidArgument for more than it has left; Io.
  void append(uint32_t storage, std::span<const std::byte> bytes);
  // So far.
  [[nodiscard]] uint64_t written_bytes(uint32_t storage) const noexcept;
  [[nodiscard]] bool is_written(uint32_t storage) const noexcept;

  // Has the disk keep all files, then puts them in their places. Afterwards
  // append() and finish() are errors.
  // THROWS: CheckpointError InvalidArgument, naming the first tensor, unless
  // all storages are written; Io, and then the target is as it was.
  void finish();

 private:
  struct File {
    std::unique_ptr<FileLayout> layout;
    std::unique_ptr<os::OutputFile> output;
    std::unique_ptr<FileWriter> writer;
  };

  void check_open() const;
  void publish();
  [[nodiscard]] std::string index_text() const;

  std::string path_;
  Plan plan_;
  std::vector<std::string> file_paths_;
  std::vector<File> files_;
  std::unique_ptr<os::OutputFile> index_;  // null for one file
  std::string index_text_;
  uint64_t size_bytes_ = 0;
  bool is_finished_ = false;
};

// "model-00002-of-00005.safetensors" of "model.safetensors", and its index's
// "model.safetensors.index.json".
[[nodiscard]] std::string shard_path(
    const std::string& path,
    size_t number,
    size_t count);
[[nodiscard]] std::string index_path(const std::string& path);

}  // namespace ckpt_streamer::write
