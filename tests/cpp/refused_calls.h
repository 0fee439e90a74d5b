// What the policy of a container or a sandbox refuses (seccomp(2)).
#pragma once

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ckpt_streamer::testing {

// One system call, always or where an argument's lower half is a value.
struct RefusedCall {
  uint32_t number;
  int argument = -1;  // -1: whatever they are
  uint32_t value = 0;
};

// From now on, these fail in the calling thread and its children with EPERM.
// For forked children: it cannot be undone. Returns whether that was possible.
inline bool refuse(const std::vector<RefusedCall>& calls) {
  std::vector<sock_filter> program;
  const auto load = [&](size_t offset) {
    program.push_back(
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)));
  };
  for (const RefusedCall& call : calls) {
    const bool has_argument = call.argument >= 0;
    load(offsetof(seccomp_data, nr));
    program.push_back(BPF_JUMP(
        BPF_JMP | BPF_JEQ | BPF_K,
        call.number,
        0,
        static_cast<uint8_t>(has_argument ? 3 : 1)));
    if (has_argument) {
      load(
          offsetof(seccomp_data, args) +
          sizeof(uint64_t) * static_cast<size_t>(call.argument));
      program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call.value, 0, 1));
    }
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  const sock_fprog filter = {
      static_cast<unsigned short>(program.size()),
      program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

}  // namespace ckpt_streamer::testing
