// Darwin. There is no way to drop a clean page at once from outside the kernel;
// MADV_DONTNEED moves pages to the inactive queue, to be reclaimed first, and
// never discards a written page (xnu, bsd/kern/kern_mman.c: VM_BEHAVIOR_
// DONTNEED). So the limit is a hint here, and nothing can be lost.
#include <mach/mach.h>
#include <mach/mach_vm.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/error.h"
#include "os/advise.h"
#include "os/residency.h"

namespace ckpt_streamer::os {

uint64_t page_size_bytes() noexcept {
  static const uint64_t value = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  return value;
}

uint64_t fault_extent_bytes() noexcept {
  // The fault handler clusters up to 64 KiB (xnu, osfmk/vm/vm_fault.c).
  return std::max<uint64_t>(65536, page_size_bytes());
}

std::vector<ByteRange> private_file_mappings(
    const ByteRange& within,
    ScanMethod) {
  std::vector<ByteRange> mappings;
  mach_vm_address_t address = within.begin;
  while (address < within.end) {
    mach_vm_size_t size = 0;
    vm_region_extended_info_data_t info = {};
    mach_msg_type_number_t count = VM_REGION_EXTENDED_INFO_COUNT;
    mach_port_t object = MACH_PORT_NULL;
    const kern_return_t status = ::mach_vm_region(
        ::mach_task_self(),
        &address,
        &size,
        VM_REGION_EXTENDED_INFO,
        reinterpret_cast<vm_region_info_t>(&info),
        &count,
        &object);
    if (status == KERN_INVALID_ADDRESS) {
      return mappings;  // past the last region
    }
    if (status != KERN_SUCCESS) {
      throw CheckpointError(
          ErrorKind::kIo,
          "mach_vm_region",
          "cannot read this process's mappings: status " +
              std::to_string(status));
    }
    // external_pager: the region's memory object is a file. A private mapping
    // of one is copy-on-write.
    if (info.external_pager != 0 && address < within.end &&
        (info.share_mode == SM_COW || info.share_mode == SM_PRIVATE)) {
      mappings.push_back({address, address + size});
    }
    address += size;
  }
  return mappings;
}

void advise_huge_pages(std::span<const ByteRange>, HugePages) noexcept {}

Residency::Residency(ScanMethod method) noexcept : method_(method) {}

Residency::~Residency() = default;

void Residency::close_all() noexcept {}

bool Residency::ensure_open() noexcept {
  return method_ != ScanMethod::kNone;
}

int Residency::scan_error() noexcept {
  return ensure_open() ? 0 : EACCES;
}

DropResult Residency::drop_resident(
    std::span<const ByteRange> ranges,
    OtherWriters,
    LargeFolios) noexcept {
  DropResult result;
  for (const ByteRange& range : ranges) {
    result.found_bytes += count_resident({&range, 1});
    const int error_number = advise(range, MADV_DONTNEED);
    if (error_number != 0 && result.error_number == 0) {
      result.error_number = error_number;
    }
    result.remaining_bytes += count_resident({&range, 1});
  }
  return result;
}

DropResult Residency::page_out(std::span<const ByteRange> ranges) noexcept {
  return drop_resident(ranges, OtherWriters::kPossible);
}

// mincore() tells what the system has cached, not what this process has mapped:
// nothing to watch.
uint64_t Residency::list_runs(
    const ByteRange& range,
    size_t,
    std::vector<PageRun>&) {
  return range.begin;
}

int Residency::page_out(const PageRun&) noexcept {
  return ENOTSUP;
}

uint64_t Residency::mapped_file_bytes() noexcept {
  return 0;
}

int Residency::move_out(const ByteRange& range) noexcept {
  return drop_resident({&range, 1}, OtherWriters::kPossible).error_number;
}

uint64_t Residency::count_resident(std::span<const ByteRange> ranges) noexcept {
  const uint64_t page_size = page_size_bytes();
  uint64_t total = 0;
  for (const ByteRange& range : ranges) {
    uint64_t cursor = range.begin;
    while (cursor < range.end) {
      std::array<char, 4096> states;
      const uint64_t step =
          std::min(range.end - cursor, states.size() * page_size);
      if (::mincore(pointer_to(cursor), step, states.data()) != 0) {
        total += range.end - cursor;
        break;
      }
      const auto pages = static_cast<std::ptrdiff_t>(step / page_size);
      total += page_size *
               static_cast<uint64_t>(std::count_if(
                   states.begin(),
                   states.begin() + pages,
                   [](char state) { return (state & MINCORE_INCORE) != 0; }));
      cursor += step;
    }
  }
  return total;
}

uint64_t Residency::count_written(std::span<const ByteRange>) noexcept {
  return 0;
}

int populate_at_once(const ByteRange&) noexcept {
  return ENOTSUP;
}

int Residency::populate(const ByteRange& range) noexcept {
  const ByteRange pages = round_outward(range, page_size_bytes());
  for (uint64_t page = pages.begin; page < pages.end;
       page += page_size_bytes()) {
    (void)*static_cast<const volatile char*>(pointer_to(page));
  }
  return 0;
}

}  // namespace ckpt_streamer::os
