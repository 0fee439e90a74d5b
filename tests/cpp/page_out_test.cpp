#include "os/page_out.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "refused_calls.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

using ckpt_streamer::testing::refuse;
using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

TEST(a_pipe_of_unknown_size_is_told) {
  const uint64_t size = 2 * fault_extent_bytes();
  const TemporaryFile file(size);
  const TestMapping mapping(file.path(), size, MAP_PRIVATE);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    if (!refuse({{SYS_fcntl, 1, F_GETPIPE_SZ}})) {
      ::_exit(2);
    }
    PageOut page_out;
    const bool is_told = page_out.unmap(mapping.range(), true) == EAGAIN &&
                         page_out.unmap(mapping.range(), false) == EAGAIN;
    ::_exit(is_told ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace ckpt_streamer::os
