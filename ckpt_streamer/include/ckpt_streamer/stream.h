// Streams PyTorch checkpoints through a bounded amount of physical memory.
//
//   #include <ckpt_streamer/stream.h>
//
//   for (const auto& [name, tensor] : ckpt_streamer::open(
//            "model.ckpt",
//            {.memory_limit_bytes = 1ull << 30})) {
//     std::cout << name << " " << tensor.sizes() << "\n";
//   }
//
// Needs C++20, libtorch of the version that the library was compiled for, and
// no Python. Link `ckpt_streamer::ckpt_streamer` (CMake's find_package), or
// -lckpt_streamer from ckpt_streamer.library_paths().
//
// Errors are torch's, with the texts that Python and TorchScript show:
//
//   c10::ValueError           a corrupt file, or an argument that is not valid
//   c10::NotImplementedError  a file, or something in it, that is not supported
//   c10::IndexError           past the end
//   c10::Error                the system refused: no such file, no permission;
//                             base of the others
//
// what_without_backtrace() is the text: `<path>: <what was found>, <what was
// expected> [<where>]`. Thrown through an op of yours, each arrives in Python
// as the exception of that name (c10::Error as RuntimeError).
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/intrusive_ptr.h>
#include <ckpt_streamer/export.h>
#include <ckpt_streamer/torch_version.h>
#include <torch/version.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#if TORCH_VERSION_MAJOR != CKPT_STREAMER_TORCH_VERSION_MAJOR || \
    TORCH_VERSION_MINOR != CKPT_STREAMER_TORCH_VERSION_MINOR
#error \
    "ckpt_streamer was compiled for another torch (see torch_version.h): \
install it again for this one"
#endif

namespace c10 {
struct IValue;
}  // namespace c10

namespace ckpt_streamer {
// The version of this interface, part of the name of every symbol: a program
// neither links nor loads with another one.
inline namespace v1 {

// 1 GiB, as in Python.
inline constexpr uint64_t kDefaultMemoryLimitBytes = uint64_t{1} << 30;

// One limit for several streams: what they hold resident together never
// exceeds it. Each takes its share whenever it makes room for further tensors:
// up to half of what the others leave. A stream that finds no room throws
// c10::ValueError; its next() can be called again when others have gone on.
//
// Copies are the same budget. Thread-safe.
class CKPT_STREAMER_API MemoryBudget {
 public:
  // THROWS: c10::ValueError below 4 MiB (two blocks of what one page fault may
  // map).
  explicit MemoryBudget(uint64_t limit_bytes);
  MemoryBudget(const MemoryBudget& other);
  MemoryBudget& operator=(const MemoryBudget& other);
  ~MemoryBudget();

  [[nodiscard]] uint64_t limit_bytes() const;
  // What its streams may have resident at the moment, all together.
  [[nodiscard]] uint64_t bytes_held() const;

  // The same budget as an argument of TorchScript: a
  // torch.classes.ckpt_streamer.MemoryBudget.
  [[nodiscard]] c10::IValue to_ivalue() const;
  // THROWS: c10::TypeError for any other value.
  [[nodiscard]] static MemoryBudget from_ivalue(const c10::IValue& handle);

 private:
  friend struct BudgetAccess;
  explicit MemoryBudget(c10::intrusive_ptr<c10::intrusive_ptr_target> handle);

  c10::intrusive_ptr<c10::intrusive_ptr_target> handle_;
};

// What open() takes beside the files.
struct OpenOptions {
  // The most of the files' clean pages to hold in physical memory. Positive.
  uint64_t memory_limit_bytes = kDefaultMemoryLimitBytes;
  // Floating-point tensors are converted to it on their way, bit for bit as
  // Tensor::to() does it; others pass unchanged.
  std::optional<at::ScalarType> dtype = std::nullopt;
  // Whether records are held against their checksums before the first of their
  // tensors is returned: read once more for it.
  bool verify = false;
  // Patterns of names, as Python's fnmatch takes them: only tensors that match
  // one are streamed.
  std::optional<std::vector<std::string>> select = std::nullopt;
  // Whether the limit is for the kernel's cached copy as well, for which a
  // container is charged: it is dropped behind the reader.
  bool drop_page_cache = false;
  // What the stream shares with others; of it, memory_limit_bytes at most.
  std::optional<MemoryBudget> budget = std::nullopt;
};

// What stream() takes beside the tensors; fields as in OpenOptions.
struct StreamOptions {
  uint64_t memory_limit_bytes = kDefaultMemoryLimitBytes;
  std::optional<at::ScalarType> dtype = std::nullopt;
  bool drop_page_cache = false;
  std::optional<MemoryBudget> budget = std::nullopt;
};

// The name is the keys that lead to the tensor, joined by '.'.
//
// The tensor is a view of the file's private mapping, or owns its memory if it
// was converted. It outlives the stream: its bytes stay what they are, are read
// from the file again when touched, and then count against no limit. Writing to
// it never reaches the file.
struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

// The figures of a stream, as of the call of stats(); in bytes where the name
// says so.
struct StreamStats {
  uint64_t tensors = 0;
  uint64_t tensors_yielded = 0;
  uint64_t memory_limit_bytes = 0;
  // How often room was made for further tensors.
  uint64_t windows_entered = 0;
  // What the tensors yielded span, shared memory once.
  uint64_t bytes_streamed = 0;
  // File pages given back.
  uint64_t bytes_evicted = 0;
  // Read from the disk ahead of the reader.
  uint64_t bytes_prefetched = 0;
  // Clean file pages of the tensors that are in memory now.
  uint64_t bytes_resident = 0;
  // The most of them, as seen whenever pages were given back or counted.
  uint64_t peak_bytes_resident = 0;
  // How far that is above the limit.
  uint64_t bytes_over_limit = 0;
  // Pages of the tensors that were written to: the caller's, never given back.
  uint64_t bytes_written = 0;
  // What could not be held within the limit, and why; empty if all was.
  std::string not_held;
  // What else there is to know of it, in words: tensors that nothing bounds, on
  // the heap, and file systems that are no disks, as tmpfs or NFS. Empty if
  // there is nothing.
  std::string notes;
};

// A stream of named tensors under a memory limit, in the order of the files.
//
// A moved-from stream can be assigned to and destroyed. All other methods may
// be called from several threads; each call is atomic.
class CKPT_STREAMER_API Stream {
 public:
  class Iterator;

  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  // All pages go back.
  ~Stream();

  // An input range of the tensors that are still to come: begin() reads the
  // next one, a loop that is left and entered again goes on behind the last.
  // Its iterators REQUIRE the stream to live and to stay where it is, and hold
  // one tensor at a time; for several threads, there is next().
  // THROWS: as next().
  [[nodiscard]] Iterator begin();
  [[nodiscard]] std::default_sentinel_t end() const noexcept {
    return {};
  }

  // Whether next() has another tensor. Once it has none, all pages go back.
  [[nodiscard]] bool has_next();

  // The next one, in the order of the stream. Its pages may go when the stream
  // makes room for further tensors.
  // THROWS: c10::IndexError past the end; c10::ValueError when a file has
  // shrunk since it was opened, a record is not what its checksum says and the
  // stream verifies, or its budget has no room at the moment.
  [[nodiscard]] NamedTensor next();

  // The tensor of a name, within the limit; the stream stays where it is.
  // THROWS: c10::ValueError for a name that no tensor or several have, and as
  // next().
  [[nodiscard]] at::Tensor tensor(const std::string& name);

  // tensor(name)[begin:end], of which only that part is read and converted.
  // THROWS: as tensor(); c10::ValueError for a tensor without dimensions,
  // c10::IndexError unless 0 <= begin <= end <= its first size.
  [[nodiscard]] at::Tensor slice(
      const std::string& name,
      int64_t begin,
      int64_t end);

  // All pages go back now. Tensors stay valid, and the stream goes on where it
  // is.
  void release();

  // From the first tensor again, memory released.
  void reset();

  // The number of tensors, each name counted.
  [[nodiscard]] size_t size() const;

  // O(pages of the live window).
  [[nodiscard]] StreamStats stats();

  // The same stream as an argument of TorchScript: a
  // torch.classes.ckpt_streamer.StreamHandle.
  [[nodiscard]] c10::IValue to_ivalue() const;

  // The stream that TorchScript or an op holds; both go on with it.
  // THROWS: c10::TypeError for any other value.
  [[nodiscard]] static Stream from_ivalue(const c10::IValue& handle);

 private:
  friend struct StreamAccess;
  explicit Stream(c10::intrusive_ptr<c10::intrusive_ptr_target> handle);

  c10::intrusive_ptr<c10::intrusive_ptr_target> handle_;
};

// See Stream::begin().
class Stream::Iterator {
 public:
  using iterator_concept = std::input_iterator_tag;
  using value_type = NamedTensor;
  using difference_type = std::ptrdiff_t;

  // REQUIRES, of what follows: not at the end.
  const NamedTensor& operator*() const noexcept {
    return *item_;
  }
  const NamedTensor* operator->() const noexcept {
    return &*item_;
  }
  // Lets go of the tensor before it asks for the next.
  Iterator& operator++() {
    item_.reset();
    if (stream_->has_next()) {
      item_.emplace(stream_->next());
    }
    return *this;
  }
  void operator++(int) {
    ++*this;
  }
  [[nodiscard]] bool operator==(std::default_sentinel_t) const noexcept {
    return !item_.has_value();
  }

 private:
  friend class Stream;
  explicit Iterator(Stream& stream) : stream_(&stream) {
    ++*this;
  }

  Stream* stream_;
  std::optional<NamedTensor> item_;  // none at the end
};

inline Stream::Iterator Stream::begin() {
  return Iterator(*this);
}

// Opens a checkpoint: torch.save's, safetensors, a TorchScript archive, or the
// index of a sharded one; what a file is, its content says. Only its table of
// contents is read, nothing in it is executed.
// THROWS: c10::ValueError for a corrupt file, a limit of 0, a dtype that is not
// a floating-point one, or patterns that match no tensor;
// c10::NotImplementedError for what is not supported, and for a file without
// checksums that is to be verified; c10::Error when it cannot be read.
[[nodiscard]] CKPT_STREAMER_API Stream
open(const std::string& path, const OpenOptions& options = {});

// Several files as one stream, in that order. Names may repeat.
[[nodiscard]] CKPT_STREAMER_API Stream
open(const std::vector<std::string>& paths, const OpenOptions& options = {});
[[nodiscard]] inline Stream open(
    std::initializer_list<std::string> paths,
    const OpenOptions& options = {}) {
  return open(std::vector<std::string>(paths), options);
}

// Tensors in memory; those that are views of a private file mapping are evicted
// behind the reader. The order is that of their memory; each yielded tensor is
// the given one, unless it was converted.
// THROWS: c10::ValueError for a limit of 0, or a dtype that is not a
// floating-point one.
[[nodiscard]] CKPT_STREAMER_API Stream stream(
    const c10::Dict<std::string, at::Tensor>& tensors,
    const StreamOptions& options = {});

// destination.copy_(source) in every respect, but that a source of pages larger
// than the limit, in a private file mapping, is read in pieces whose pages go
// back: no more than the limit of them is resident at any instant. Returns
// `destination`.
// THROWS: c10::ValueError for a limit of 0; whatever copy_ throws.
CKPT_STREAMER_API at::Tensor& copy_(
    at::Tensor& destination,
    const at::Tensor& source,
    uint64_t memory_limit_bytes,
    bool drop_page_cache = false);

// The limit that fits the machine and the container at the moment, in bytes.
// Cost: well below a millisecond.
[[nodiscard]] CKPT_STREAMER_API uint64_t default_memory_limit_bytes();

}  // namespace v1
}  // namespace ckpt_streamer
