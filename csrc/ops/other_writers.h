// Which of this process's threads may write to a tensor while an op runs, and
// which can be given work.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "os/residency.h"
#include "os/threads.h"
#include "stream/window_streamer.h"

namespace at {
struct TensorIterator;
}  // namespace at

namespace ckpt_streamer::ops {

// kNone if no thread but the caller can run (os::ThreadCensus): the others wait
// to be handed work, as the threads of torch's and NumPy's pools do. torch's
// intra-op workers poll for a while before they wait; those of the caller's own
// parallel regions count as waiting as well. kPossible as soon as any other
// thread runs, or may wake by itself.
//
// Not thread-safe.
class OtherWriters {
 public:
  OtherWriters();
  OtherWriters(const OtherWriters&) = delete;
  OtherWriters& operator=(const OtherWriters&) = delete;
  ~OtherWriters();

  // Cost: some system calls a thread, 20 microseconds for a few; while intra-op
  // workers poll, an empty parallel region as well.
  [[nodiscard]] os::OtherWriters look();

  // Runs task(i) for each i below `count`, each once, on the caller and torch's
  // intra-op workers, if they were polling for work at the last look, so that
  // it starts within microseconds. Otherwise false, and nothing has run: they
  // would have to be woken, or made (which is no good after a fork).
  [[nodiscard]] bool run_at_once(
      size_t count,
      const std::function<void(size_t)>& task);

 private:
  bool may_use_workers();
  std::vector<int64_t> intra_op_threads();

  os::ThreadCensus census_;
  // Over as many elements as torch has intra-op threads. Kept: with the caches
  // full of tensor data, making it takes longer than running it.
  std::unique_ptr<at::TensorIterator> region_;
  bool are_workers_polling_ = false;
};

// For a stream of torch's tensors.
[[nodiscard]] stream::OtherThreads other_threads();

}  // namespace ckpt_streamer::ops
