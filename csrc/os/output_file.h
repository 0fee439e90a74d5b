// A file that is written somewhere else and put in its place when it is whole.
//
//   WRITING --write--> WRITING --sync--> SYNCED --publish--> PUBLISHED
//   WRITING, SYNCED --destroy--> (gone)   PUBLISHED --withdraw--> (gone)
//
//   I1  Until publish(), whatever is at the path stays as it is; from then on,
//       the path names the whole file. There is nothing in between, also when
//       the process is killed or the machine stops.
//   I2  What is destroyed before publish() leaves nothing behind.
//   I3  A process that is forked meanwhile takes nothing away.
//
//                    Linux                              macOS, and file systems
//                                                       without O_TMPFILE
//   while writing    no name (O_TMPFILE): gone with     ".NAME.XXXXXX.part"
//                    the process, however it ends       beside the target; a
//                                                       killed process leaves
//                                                       it
//   space            reserved at once (fallocate)       as it is written
//   write-behind     sync_file_range                    the system's own
//   cache dropped    posix_fadvise(DONTNEED)            kept
//
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/byte_range.h"
#include "base/byte_sink.h"

namespace ckpt_streamer::os {

class OutputFile final : public ByteSink {
 public:
  // What becomes of the kernel's cached copy of what is written: kept, or given
  // back some 32 MiB behind the writer.
  enum class Cache : bool { kKeep, kDrop };

  // What publish() does where there is a file at the path.
  enum class Existing : bool { kReplace, kRefuse };

  // A file of `size_bytes`, in the folder of `path`. A symbolic link is
  // followed: what it points to is replaced.
  // THROWS: CheckpointError InvalidArgument for a path that names a directory
  // or anything else that is not a regular file, or that holds a NUL; Io when
  // the system refuses: no such folder, no permission, not enough space, or
  // Existing::kRefuse and there is a file.
  OutputFile(
      std::string path,
      uint64_t size_bytes,
      Cache cache,
      Existing existing);
  ~OutputFile() override;

  [[nodiscard]] const std::string& path() const noexcept override {
    return path_;
  }
  // Bytes that are not written are 0. The kernel is told to begin writing to
  // the disk every 8 MiB.
  // REQUIRES: inside [0, size_bytes); not published.
  void write(uint64_t file_offset, std::span<const std::byte> bytes) override;

  // Has the disk keep the bytes. THROWS: Io.
  void sync();

  // Puts the file at its path. Another sync of the folder makes that last:
  // sync_folder(). REQUIRES: sync() was called. THROWS: Io.
  void publish();
  // THROWS: Io.
  void sync_folder() const;

  // Takes a published file away again; for what was not there before. Failures
  // are ignored.
  void withdraw() noexcept;

 private:
  void open_unnamed();
  void open_named();
  void reserve(uint64_t size_bytes);
  // Gives the open file, which has no name, one. Returns 0 or an errno.
  [[nodiscard]] int link_unnamed(const std::string& name) noexcept;
  // The same, of temporary_path().
  void give_name();
  [[nodiscard]] std::string temporary_path(uint64_t attempt) const;
  void start_writing_back(const ByteRange& range) noexcept;
  void drop_written(const ByteRange& range) noexcept;

  std::string path_;    // as it was given
  std::string target_;  // with links followed
  std::string folder_;
  std::string temporary_;  // empty: the file has no name yet
  int descriptor_ = -1;
  Cache cache_;
  Existing existing_;
  // Written since the kernel was last told; one run.
  ByteRange fresh_;
  // Being written to the disk, to be dropped next.
  ByteRange written_back_;
  bool is_published_ = false;
  int64_t owner_process_;
};

}  // namespace ckpt_streamer::os
