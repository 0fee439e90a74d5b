#include "format/torch_archive.h"

#include <algorithm>
#include <charconv>
#include <span>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

// caffe2/serialize/versions.h, kMaxSupportedFileFormatVersion.
constexpr uint64_t kHighestFileFormatVersion = 10;

void check_stored(const ByteSource& source, const ZipEntry& entry) {
  if (!entry.is_stored()) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        source.path(),
        "record " + quoted(entry.name) + " is compressed (method " +
            std::to_string(entry.method) + "), expected stored",
        entry.local_header_offset);
  }
}

// A record of a few characters; what is longer comes back cut.
std::string read_short_record(const ByteSource& source, const ZipEntry& entry) {
  constexpr uint64_t kLongestBytes = 32;
  check_stored(source, entry);
  std::string text(
      std::min(entry.data_range.size_bytes(), kLongestBytes),
      '\0');
  source.read(entry.data_range.begin, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace

std::string archive_prefix(const ZipDirectory& directory) {
  const std::string_view first = directory.entries().front().name;
  return std::string(first.substr(0, first.find('/')));
}

PickleTree load_pickle(
    const ByteSource& source,
    const ZipEntry& entry,
    const PickleOrigin& origin) {
  check_stored(source, entry);
  return PickleTree::load(source, entry.data_range.size_bytes(), origin);
}

StorageRecord record_of(const ZipDirectory& directory, const ZipEntry& entry) {
  return {entry.data_range, 0, directory.checksum_of(entry)};
}

void check_archive(
    const ByteSource& source,
    const ZipDirectory& directory,
    const std::string& prefix) {
  if (const ZipEntry* order = directory.find(prefix + "/byteorder")) {
    const std::string text = read_short_record(source, *order);
    if (text == "big") {
      throw CheckpointError(
          ErrorKind::kUnsupported,
          source.path(),
          "was saved on a big-endian machine (" + quoted(order->name) +
              " is 'big'), expected little-endian",
          order->data_range.begin);
    }
    if (text != "little") {
      throw CheckpointError(
          ErrorKind::kCorrupt,
          source.path(),
          "record " + quoted(order->name) + " is " + quoted(text) +
              ", expected 'little' or 'big'",
          order->data_range.begin);
    }
  }
  // inline_container.cc, PyTorchStreamReader::init: .data/version first.
  const ZipEntry* version = directory.find(prefix + "/.data/version");
  if (version == nullptr) {
    version = directory.find(prefix + "/version");
  }
  if (version != nullptr) {
    const std::string text = read_short_record(source, *version);
    uint64_t number = 0;
    const auto parsed =
        std::from_chars(text.data(), text.data() + text.size(), number);
    if (parsed.ec == std::errc::invalid_argument) {
      throw CheckpointError(
          ErrorKind::kCorrupt,
          source.path(),
          "record " + quoted(version->name) + " is " + quoted(text) +
              ", expected a version number",
          version->data_range.begin);
    }
    if (parsed.ec != std::errc() || number > kHighestFileFormatVersion) {
      throw CheckpointError(
          ErrorKind::kUnsupported,
          source.path(),
          "record " + quoted(version->name) + " is " + quoted(text) +
              ", expected a file format version of at most " +
              std::to_string(kHighestFileFormatVersion),
          version->data_range.begin);
    }
  }
}

}  // namespace ckpt_streamer::format
