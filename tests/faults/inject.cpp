// Preloaded (LD_PRELOAD): makes one system call of ckpt_streamer's library
// fail, and no other code's. The product has no seam for this and needs none:
// what is interposed are libc's functions.
//
// Calls are told apart by where they return to: into lib/libckpt_streamer.so,
// or into libstdc++, which opens files and makes threads for it. Calls of
// torch's and Python's are never touched.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

// What is to fail; nothing while the name is empty.
struct Fault {
  char name[32] = "";
  char text[64] = "";  // part of the path, for those that have one; "": any
  long detail = -1;    // the advice, request or command; -1: any
  int error_number = 0;
  // Instead of an error: 1: half of what was asked for; 2: nothing, as at a
  // file's end.
  int shortens = 0;
  // Counted from 1, of the calls that match; both included.
  long first = 0;
  long last = 0;
  // Calls of this name begin late, so that other threads act in between.
  char delayed[32] = "";
};
Fault fault;
std::atomic<long> call_count = 0;
std::atomic<long> hit_count = 0;

struct Addresses {
  uintptr_t begin = 0;
  uintptr_t end = 0;
};
Addresses libraries[2];

int note_library(dl_phdr_info* info, size_t, void*) {
  const bool is_product =
      std::strstr(info->dlpi_name, "lib/libckpt_streamer.so") != nullptr;
  const bool is_standard =
      std::strstr(info->dlpi_name, "libstdc++.so") != nullptr;
  if (is_product || is_standard) {
    Addresses& library = libraries[is_product ? 0 : 1];
    library = {UINTPTR_MAX, 0};
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& part = info->dlpi_phdr[i];
      if (part.p_type == PT_LOAD) {
        const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
        library.begin = begin < library.begin ? begin : library.begin;
        const uintptr_t end = begin + part.p_memsz;
        library.end = end > library.end ? end : library.end;
      }
    }
  }
  return 0;
}

bool is_ours(const void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  for (const Addresses& library : libraries) {
    if (library.begin <= address && address < library.end) {
      return true;
    }
  }
  return false;
}

enum class Action { kReal, kFail, kHalf, kNothing };

Action act(
    const void* caller,
    const char* name,
    long detail,
    const char* path = nullptr) {
  if (fault.delayed[0] != 0 && std::strcmp(fault.delayed, name) == 0 &&
      is_ours(caller)) {
    ::usleep(300);
  }
  if (fault.name[0] == 0 || std::strcmp(fault.name, name) != 0 ||
      !is_ours(caller) || (fault.detail >= 0 && fault.detail != detail) ||
      (path != nullptr && std::strstr(path, fault.text) == nullptr)) {
    return Action::kReal;
  }
  const long number = ++call_count;
  if (number < fault.first || number > fault.last) {
    return Action::kReal;
  }
  ++hit_count;
  if (fault.shortens != 0) {
    return fault.shortens == 1 ? Action::kHalf : Action::kNothing;
  }
  errno = fault.error_number;
  return Action::kFail;
}

template <typename Function>
Function real(Function, const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

size_t shortened(Action action, size_t size) {
  return action == Action::kNothing ? 0
         : action == Action::kHalf  ? (size + 1) / 2
                                    : size;
}

}  // namespace

#define CALLER __builtin_return_address(0)
#define REAL(function) static const auto next = real(&function, #function)
// An errno as the function's result says it.
#define FAIL_IF(condition, result) \
  if (condition) {                 \
    return result;                 \
  }

extern "C" {

void ckpt_fault_arm(
    const char* name,
    const char* text,
    long detail,
    int error_number,
    int shortens,
    long first,
    long last,
    const char* delayed) {
  ::dl_iterate_phdr(note_library, nullptr);
  fault = {};
  call_count = 0;
  hit_count = 0;
  std::strncpy(fault.text, text, sizeof(fault.text) - 1);
  fault.detail = detail;
  fault.error_number = error_number;
  fault.shortens = shortens;
  fault.first = first;
  fault.last = last;
  std::strncpy(fault.delayed, delayed, sizeof(fault.delayed) - 1);
  std::strncpy(fault.name, name, sizeof(fault.name) - 1);
}

void ckpt_fault_disarm() {
  fault.name[0] = 0;
}

long ckpt_fault_calls() {
  return call_count;
}

long ckpt_fault_hits() {
  return hit_count;
}

int open(const char* path, int flags, ...) {
  REAL(open);
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  va_end(arguments);
  const Action action = act(CALLER, "open", -1, path);
  FAIL_IF(action == Action::kFail, -1)
  return next(path, flags, mode);
}

FILE* fopen64(const char* path, const char* mode) {
  REAL(fopen64);
  const Action action = act(CALLER, "open", -1, path);
  FAIL_IF(action == Action::kFail, nullptr)
  return next(path, mode);
}

DIR* opendir(const char* path) {
  REAL(opendir);
  FAIL_IF(act(CALLER, "opendir", -1, path) == Action::kFail, nullptr)
  return next(path);
}

int stat(const char* path, struct stat* status) {
  REAL(stat);
  FAIL_IF(act(CALLER, "stat", -1, path) == Action::kFail, -1)
  return next(path, status);
}

int fstat(int descriptor, struct stat* status) {
  REAL(fstat);
  FAIL_IF(act(CALLER, "fstat", -1) == Action::kFail, -1)
  return next(descriptor, status);
}

int faccessat(int folder, const char* path, int mode, int flags) {
  REAL(faccessat);
  FAIL_IF(act(CALLER, "faccessat", -1) == Action::kFail, -1)
  return next(folder, path, mode, flags);
}

ssize_t read(int descriptor, void* out, size_t size) {
  REAL(read);
  const Action action = act(CALLER, "read", -1);
  FAIL_IF(action == Action::kFail, -1)
  return next(descriptor, out, shortened(action, size));
}

ssize_t pread(int descriptor, void* out, size_t size, off_t offset) {
  REAL(pread);
  const Action action = act(CALLER, "pread", -1);
  FAIL_IF(action == Action::kFail, -1)
  return next(descriptor, out, shortened(action, size), offset);
}

void* mmap(void* at, size_t size, int rights, int flags, int file, off_t from) {
  REAL(mmap);
  FAIL_IF(act(CALLER, "mmap", rights) == Action::kFail, MAP_FAILED)
  return next(at, size, rights, flags, file, from);
}

int munmap(void* at, size_t size) {
  REAL(munmap);
  FAIL_IF(act(CALLER, "munmap", -1) == Action::kFail, -1)
  return next(at, size);
}

void* mremap(void* at, size_t size, size_t new_size, int flags, ...) {
  REAL(mremap);
  va_list arguments;
  va_start(arguments, flags);
  void* const place = va_arg(arguments, void*);
  va_end(arguments);
  FAIL_IF(act(CALLER, "mremap", -1) == Action::kFail, MAP_FAILED)
  return next(at, size, new_size, flags, place);
}

int fstatfs(int descriptor, struct statfs* status) {
  REAL(fstatfs);
  FAIL_IF(act(CALLER, "fstatfs", -1) == Action::kFail, -1)
  return next(descriptor, status);
}

int madvise(void* at, size_t size, int advice) {
  REAL(madvise);
  FAIL_IF(act(CALLER, "madvise", advice) == Action::kFail, -1)
  return next(at, size, advice);
}

int mincore(void* at, size_t size, unsigned char* states) {
  REAL(mincore);
  FAIL_IF(act(CALLER, "mincore", -1) == Action::kFail, -1)
  return next(at, size, states);
}

int posix_fadvise(int descriptor, off_t offset, off_t size, int advice) {
  REAL(posix_fadvise);
  FAIL_IF(
      act(CALLER, "posix_fadvise", advice) == Action::kFail,
      fault.error_number)
  return next(descriptor, offset, size, advice);
}

int ioctl(int descriptor, unsigned long request, ...) {
  REAL(ioctl);
  va_list arguments;
  va_start(arguments, request);
  void* const argument = va_arg(arguments, void*);
  va_end(arguments);
  // The number alone, without size and direction.
  const Action action = act(CALLER, "ioctl", static_cast<long>(request & 0xff));
  FAIL_IF(action == Action::kFail, -1)
  return next(descriptor, request, argument);
}

int fcntl(int descriptor, int command, ...) {
  REAL(fcntl);
  va_list arguments;
  va_start(arguments, command);
  void* const argument = va_arg(arguments, void*);
  va_end(arguments);
  FAIL_IF(act(CALLER, "fcntl", command) == Action::kFail, -1)
  return next(descriptor, command, argument);
}

int pipe2(int* ends, int flags) {
  REAL(pipe2);
  FAIL_IF(act(CALLER, "pipe2", -1) == Action::kFail, -1)
  return next(ends, flags);
}

ssize_t vmsplice(int pipe, const iovec* parts, size_t count, unsigned flags) {
  REAL(vmsplice);
  const Action action = act(CALLER, "vmsplice", -1);
  FAIL_IF(action == Action::kFail, -1)
  if (action == Action::kHalf) {
    const iovec half = {parts->iov_base, (parts->iov_len + 1) / 2};
    return next(pipe, &half, 1, flags);
  }
  return next(pipe, parts, count, flags);
}

ssize_t splice(
    int from,
    off64_t* from_offset,
    int to,
    off64_t* to_offset,
    size_t size,
    unsigned flags) {
  REAL(splice);
  FAIL_IF(act(CALLER, "splice", -1) == Action::kFail, -1)
  return next(from, from_offset, to, to_offset, size, flags);
}

int pthread_create(
    pthread_t* thread,
    const pthread_attr_t* attributes,
    void* (*body)(void*),
    void* argument) {
  REAL(pthread_create);
  FAIL_IF(
      act(CALLER, "pthread_create", -1) == Action::kFail,
      fault.error_number)
  return next(thread, attributes, body, argument);
}

}  // extern "C"

// The library's own; libstdc++'s hold what an exception is made of.
void* operator new(size_t size) {
  const auto caller = reinterpret_cast<uintptr_t>(CALLER);
  if (libraries[0].begin <= caller && caller < libraries[0].end &&
      act(CALLER, "operator new", -1) == Action::kFail) {
    throw std::bad_alloc();
  }
  if (void* const memory = std::malloc(size > 0 ? size : 1)) {
    return memory;
  }
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept {
  std::free(memory);
}

void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
