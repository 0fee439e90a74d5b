#include "format/open_index.h"

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "format/known_formats.h"
#include "format/safetensors.h"
#include "format/shard_index.h"
#include "format/text.h"
#include "format/torch_archive.h"
#include "format/torch_legacy.h"
#include "format/torch_script.h"
#include "format/torch_zip.h"
#include "format/zip_directory.h"

namespace ckpt_streamer::format {
namespace {

constexpr size_t kShownBytes = 16;
constexpr size_t kShownRecords = 3;

[[noreturn]] void fail_unread(const ByteSource& source, std::string_view head) {
  if (const auto kind = recognize(source, head)) {
    fail_known(source.path(), *kind);
  }
  const std::string_view shown = head.substr(0, kShownBytes);
  throw CheckpointError(
      ErrorKind::kCorrupt,
      source.path(),
      "begins with " +
          hex_bytes(
              {reinterpret_cast<const std::byte*>(shown.data()),
               shown.size()}) +
          ", expected " + kExpectedFile,
      0);
}

// What a zip file is that has no data.pkl where torch.save puts it.
[[noreturn]] void fail_unread_zip(
    const ByteSource& source,
    const ZipDirectory& directory) {
  if (const auto kind = recognize_zip(directory)) {
    fail_known(source.path(), *kind);
  }
  const auto entries = directory.entries();
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
          "), expected " + quoted(archive_prefix(directory) + "/data.pkl") +
          " as torch.save writes");
}

CheckpointIndex read_zip(const ByteSource& source) {
  const ZipDirectory directory = ZipDirectory::read(source);
  if (directory.entries().empty()) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        std::string("is a zip file without records, expected ") +
            kExpectedFile);
  }
  if (is_torch_script(directory)) {
    return read_torch_script(source, directory);
  }
  const std::string pickle = archive_prefix(directory) + "/data.pkl";
  if (directory.find(pickle) == nullptr || recognize_zip(directory)) {
    fail_unread_zip(source, directory);
  }
  return read_torch_zip(source, directory);
}

CheckpointIndex read_any(const ByteSource& source, std::string_view head) {
  // The first local header, or the end record of a zip without records.
  if (head.starts_with("PK\x03\x04") || head.starts_with("PK\x05\x06")) {
    return read_zip(source);
  }
  if (is_torch_legacy(head)) {
    return read_torch_legacy(source);
  }
  if (is_safetensors(head, source.size_bytes())) {
    return read_safetensors(source);
  }
  if (is_json_object(source)) {
    fail_known(source.path(), "JSON, such as an index of shards");
  }
  fail_unread(source, head);
}

}  // namespace

CheckpointIndex read_index(const ByteSource& source) {
  if (source.size_bytes() == 0) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        std::string("is empty, expected ") + kExpectedFile);
  }
  std::string head(std::min(source.size_bytes(), kRecognizedHeadBytes), '\0');
  source.read(0, std::as_writable_bytes(std::span(head)));
  CheckpointIndex index = read_any(source, head);
  // Not by the readers: what they read from takes memory until they return.
  index.shrink_to_fit();
  if (index.files.empty()) {
    index.files.push_back({source.path(), {}});
  }
  return index;
}

}  // namespace ckpt_streamer::format
