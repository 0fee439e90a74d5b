#include "format/open_index.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "base/error.h"
#include "format/little_endian.h"
#include "format/text.h"
#include "format/torch_zip.h"
#include "format/zip_directory.h"

namespace ckpt_streamer::format {
namespace {

using namespace std::string_view_literals;

struct Magic {
  std::string_view bytes;
  size_t offset;
  const char* kind;
};

// First match wins.
constexpr std::array kKnownMagics{
    // serialization.py, MAGIC_NUMBER = 0x1950a86a20f9469cfc6c, pickled as a
    // LONG1 of 10 bytes.
    Magic{
        "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv,
        0,
        "a legacy torch.save file (before torch 1.6)"},
    // inline_container.cc: the preview release of the zip format.
    Magic{"PYTORCH1"sv, 0, "a PyTorch preview archive"},
    Magic{"GGUF"sv, 0, "a GGUF file"},
    Magic{"\x89HDF\r\n\x1a\n"sv, 0, "an HDF5 file"},
    Magic{"\x93NUMPY"sv, 0, "a NumPy .npy file"},
    Magic{"\x1f\x8b"sv, 0, "a gzip file"},
    Magic{"ustar"sv, 257, "a tar file"},
};

// The tar magic lies deepest.
constexpr uint64_t kHeadBytes = 262;
constexpr size_t kShownBytes = 16;
constexpr size_t kShownRecords = 3;

[[noreturn]] void fail_known(const ByteSource& source, const char* kind) {
  throw CheckpointError(
      ErrorKind::kUnsupported,
      source.path(),
      std::string("is ") + kind +
          ", which is not read yet; expected a torch.save zip file");
}

// The header of safetensors: its size in 8 bytes, then that much JSON.
bool is_safetensors(const ByteSource& source, std::string_view head) {
  return head.size() > 8 && head[8] == '{' &&
         load_u64(reinterpret_cast<const std::byte*>(head.data())) <=
             source.size_bytes() - 8;
}

[[noreturn]] void fail_not_zip(
    const ByteSource& source,
    std::string_view head) {
  for (const Magic& magic : kKnownMagics) {
    if (head.size() >= magic.offset &&
        head.substr(magic.offset).starts_with(magic.bytes)) {
      fail_known(source, magic.kind);
    }
  }
  if (is_safetensors(source, head)) {
    fail_known(source, "a safetensors file");
  }
  // PROTO 2 to 5, the first opcode of any pickle since protocol 2.
  if (head.size() >= 2 && head[0] == '\x80' && head[1] >= 2 && head[1] <= 5) {
    fail_known(source, "a plain pickle");
  }
  const std::string_view shown = head.substr(0, kShownBytes);
  throw CheckpointError(
      ErrorKind::kCorrupt,
      source.path(),
      "begins with " +
          hex_bytes(
              {reinterpret_cast<const std::byte*>(shown.data()),
               shown.size()}) +
          ", expected a torch.save zip file (50 4b 03 04)",
      0);
}

// Names what a zip file is that has no data.pkl where torch.save puts it.
void check_has_pickle(const ByteSource& source, const ZipDirectory& directory) {
  const auto entries = directory.entries();
  if (entries.empty()) {
    return;
  }
  const std::string_view first = entries.front().name;
  const std::string prefix(first.substr(0, first.find('/')));
  if (directory.find(prefix + "/data.pkl") != nullptr) {
    return;
  }
  if (directory.find(prefix + "/constants.pkl") != nullptr ||
      first.starts_with(prefix + "/code/")) {
    fail_known(source, "a TorchScript archive");
  }
  if (std::all_of(entries.begin(), entries.end(), [](const ZipEntry& entry) {
        return entry.name.ends_with(".npy");
      })) {
    fail_known(source, "a NumPy .npz file");
  }
  std::string names;
  for (const ZipEntry& entry :
       entries.first(std::min(entries.size(), kShownRecords))) {
    names += (names.empty() ? "" : ", ") + quoted(entry.name);
  }
  throw CheckpointError(
      ErrorKind::kUnsupported,
      source.path(),
      "is a zip file of " + std::to_string(entries.size()) + " records (" +
          names + (entries.size() > kShownRecords ? ", ..." : "") +
          "), expected " + quoted(prefix + "/data.pkl") +
          " as torch.save writes");
}

}  // namespace

CheckpointIndex read_index(const ByteSource& source) {
  if (source.size_bytes() == 0) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        "is empty, expected a torch.save zip file");
  }
  std::string head(std::min(source.size_bytes(), kHeadBytes), '\0');
  source.read(0, std::as_writable_bytes(std::span(head)));
  // The first local header, or the end record of a zip without records.
  if (!head.starts_with("PK\x03\x04") && !head.starts_with("PK\x05\x06")) {
    fail_not_zip(source, head);
  }
  const ZipDirectory directory = ZipDirectory::read(source);
  check_has_pickle(source, directory);
  return read_torch_zip(source, directory);
}

}  // namespace ckpt_streamer::format
