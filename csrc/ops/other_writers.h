// Which of this process's threads may write to a tensor while an op runs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "os/residency.h"
#include "os/threads.h"

namespace at {
struct TensorIterator;
}  // namespace at

namespace ckpt_streamer::ops {

// A stream::WriterCheck.
//
// kNone if no thread but the caller can run (os::ThreadCensus): the others wait
// to be handed work, as the threads of torch's and NumPy's pools do. torch's
// intra-op workers poll for a while before they wait; those of the caller's own
// parallel regions count as waiting as well. kPossible as soon as any other
// thread runs, or may wake by itself.
//
// Copies start anew. Not thread-safe.
class OtherWriters {
 public:
  OtherWriters();
  OtherWriters(const OtherWriters& other);
  OtherWriters& operator=(const OtherWriters&) = delete;
  ~OtherWriters();

  // Cost: some system calls a thread, 20 microseconds for a few; while intra-op
  // workers poll, an empty parallel region as well.
  [[nodiscard]] os::OtherWriters operator()();

 private:
  std::vector<int64_t> intra_op_threads();

  os::ThreadCensus census_;
  // Over as many elements as torch has intra-op threads. Kept: with the caches
  // full of tensor data, making it takes longer than running it.
  std::unique_ptr<at::TensorIterator> region_;
};

}  // namespace ckpt_streamer::ops
