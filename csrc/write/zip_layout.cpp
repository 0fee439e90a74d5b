#include "write/zip_layout.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "base/byte_range.h"
#include "base/crc32.h"
#include "write/text_buffer.h"

namespace ckpt_streamer::write {
namespace {

// The folder in the archive; torch's for what has no file's name.
constexpr std::string_view kFolder = "archive/";

// inline_container.h, kFieldAlignment.
constexpr uint64_t kAlignment = 64;

// Checksum and sizes are behind the bytes; names are UTF-8.
constexpr uint16_t kFlags = 0x0808;

constexpr uint64_t kLocalHeaderBytes = 30;
constexpr uint64_t kZip64ExtraBytes = 20;
constexpr uint64_t kPaddingHeaderBytes = 4;
constexpr uint32_t kAllOnes = 0xFFFFFFFF;
constexpr size_t kSerializationIdBytes = 40;

constexpr std::string_view kVersion = "3\n";

std::string twenty_digits(uint64_t number) {
  const std::string digits = std::to_string(number);
  return std::string(20 - digits.size(), '0') + digits;
}

}  // namespace

ZipLayout::ZipLayout(const PlannedFile& file, const std::string& pickle)
    : storage_count_(file.index.storages.size()) {
  const std::string alignment = std::to_string(kAlignment);
  const std::array<std::pair<std::string, std::string_view>, kFirstStorage>
      first{{
          {"data.pkl", pickle},
          {".format_version", "1"},
          {".storage_alignment", alignment},
          {"byteorder",
           std::endian::native == std::endian::little ? "little" : "big"},
      }};
  records_.reserve(first.size() + storage_count_ + 2);
  for (const auto& [name, bytes] : first) {
    add(name, bytes.size());
    head_checksums_.push_back(append_record(head_, records_.back(), bytes));
  }
  for (size_t i = 0; i < storage_count_; ++i) {
    add("data/" + std::to_string(i),
        file.index.storages[i].file_range.size_bytes());
  }
  const uint64_t tail_offset = next_offset_;
  add("version", kVersion.size());
  add(".data/serialization_id", kSerializationIdBytes);
  const std::vector<uint32_t> no_checksums(storage_count_);
  size_bytes_ = tail_offset + tail(no_checksums).size();
}

void ZipLayout::add(std::string name, uint64_t size_bytes) {
  Record record;
  record.name = std::string(kFolder) + std::move(name);
  record.header_offset = next_offset_;
  record.size_bytes = size_bytes;
  record.data_offset = round_up(
      next_offset_ + kLocalHeaderBytes + record.name.size() +
          (record.is_large() ? kZip64ExtraBytes : 0) + kPaddingHeaderBytes,
      kAlignment);
  next_offset_ =
      record.data_offset + record.size_bytes + record.descriptor_bytes();
  records_.push_back(std::move(record));
}

std::string ZipLayout::local_header(const Record& record) {
  std::string out = "PK\x03\x04";
  const uint64_t extra_bytes = record.data_offset - record.header_offset -
                               kLocalHeaderBytes - record.name.size();
  append_little_endian(out, record.is_large() ? 45 : 0, 2);
  append_little_endian(out, kFlags, 2);
  append_little_endian(out, 0, 2);  // stored
  append_little_endian(out, 0, 4);  // no time
  append_little_endian(out, 0, 4);  // the checksum comes behind
  const uint32_t size = record.is_large() ? kAllOnes : 0;
  append_little_endian(out, size, 4);
  append_little_endian(out, size, 4);
  append_little_endian(out, record.name.size(), 2);
  append_little_endian(out, extra_bytes, 2);
  out += record.name;
  uint64_t padding_bytes = extra_bytes - kPaddingHeaderBytes;
  if (record.is_large()) {
    append_little_endian(out, 1, 2);
    append_little_endian(out, 16, 2);
    append_little_endian(out, record.size_bytes, 8);
    append_little_endian(out, record.size_bytes, 8);
    padding_bytes -= kZip64ExtraBytes;
  }
  out += "FB";
  append_little_endian(out, padding_bytes, 2);
  out.append(padding_bytes, 'Z');
  return out;
}

std::string ZipLayout::descriptor(const Record& record, uint32_t crc32) {
  std::string out = "PK\x07\x08";
  append_little_endian(out, crc32, 4);
  const size_t width = record.is_large() ? 8 : 4;
  append_little_endian(out, record.size_bytes, width);
  append_little_endian(out, record.size_bytes, width);
  return out;
}

uint32_t ZipLayout::append_record(
    std::string& out,
    const Record& record,
    std::string_view bytes) {
  const uint32_t checksum = crc32(std::as_bytes(std::span(bytes)));
  out += local_header(record);
  out += bytes;
  out += descriptor(record, checksum);
  return checksum;
}

void ZipLayout::append_directory_entry(
    std::string& out,
    const Record& record,
    uint32_t crc32) {
  const bool is_far = record.header_offset >= kAllOnes;
  std::string extra;
  if (record.is_large()) {
    append_little_endian(extra, record.size_bytes, 8);
    append_little_endian(extra, record.size_bytes, 8);
  }
  if (is_far) {
    append_little_endian(extra, record.header_offset, 8);
  }
  const uint32_t size =
      record.is_large() ? kAllOnes : static_cast<uint32_t>(record.size_bytes);
  const uint16_t version = extra.empty() ? 0 : 45;
  out += "PK\x01\x02";
  append_little_endian(out, version, 2);
  append_little_endian(out, version, 2);
  append_little_endian(out, kFlags, 2);
  append_little_endian(out, 0, 2);
  append_little_endian(out, 0, 4);
  append_little_endian(out, crc32, 4);
  append_little_endian(out, size, 4);
  append_little_endian(out, size, 4);
  append_little_endian(out, record.name.size(), 2);
  append_little_endian(out, extra.empty() ? 0 : extra.size() + 4, 2);
  out.append(2 + 2 + 2 + 4, '\0');  // comment, disk, attributes
  append_little_endian(out, is_far ? kAllOnes : record.header_offset, 4);
  out += record.name;
  if (!extra.empty()) {
    append_little_endian(out, 1, 2);
    append_little_endian(out, extra.size(), 2);
    out += extra;
  }
}

// torch's is of names and checksums too; what it is does not matter to a
// reader, but that the same contents have the same.
std::string ZipLayout::serialization_id(
    std::span<const uint32_t> checksums) const {
  constexpr uint64_t kPrime = 0x100000001B3;
  uint64_t names = 0xCBF29CE484222325;
  for (const Record& record : records_) {
    for (const char character : record.name) {
      names = (names ^ static_cast<unsigned char>(character)) * kPrime;
    }
  }
  uint64_t contents = 0xCBF29CE484222325;
  const auto add_all = [&](std::span<const uint32_t> each) {
    for (const uint32_t checksum : each) {
      contents = (contents ^ checksum) * kPrime;
    }
  };
  add_all(head_checksums_);
  add_all(checksums);
  return twenty_digits(names) + twenty_digits(contents);
}

std::string ZipLayout::tail(std::span<const uint32_t> checksums) const {
  std::string out;
  std::vector<uint32_t> all(head_checksums_);
  all.insert(all.end(), checksums.begin(), checksums.end());
  all.push_back(append_record(out, records_[all.size()], kVersion));
  all.push_back(
      append_record(out, records_[all.size()], serialization_id(checksums)));
  append_directory(out, all);
  return out;
}

// APPNOTE 4.3.14 to 4.3.16. The zip64 ones always, as torch has them.
void ZipLayout::append_directory(
    std::string& out,
    std::span<const uint32_t> checksums) const {
  const uint64_t begin = next_offset_;
  const size_t begin_in_tail = out.size();
  for (size_t i = 0; i < records_.size(); ++i) {
    append_directory_entry(out, records_[i], checksums[i]);
  }
  const uint64_t size_bytes = out.size() - begin_in_tail;
  const uint64_t count = records_.size();
  out += "PK\x06\x06";
  append_little_endian(out, 44, 8);
  append_little_endian(out, 45, 2);
  append_little_endian(out, 45, 2);
  append_little_endian(out, 0, 4 + 4);
  append_little_endian(out, count, 8);
  append_little_endian(out, count, 8);
  append_little_endian(out, size_bytes, 8);
  append_little_endian(out, begin, 8);
  out += "PK\x06\x07";
  append_little_endian(out, 0, 4);
  append_little_endian(out, begin + size_bytes, 8);
  append_little_endian(out, 1, 4);
  out += "PK\x05\x06";
  append_little_endian(out, 0, 2 + 2);
  append_little_endian(out, std::min<uint64_t>(count, 0xFFFF), 2);
  append_little_endian(out, std::min<uint64_t>(count, 0xFFFF), 2);
  append_little_endian(out, std::min<uint64_t>(size_bytes, kAllOnes), 4);
  append_little_endian(out, std::min<uint64_t>(begin, kAllOnes), 4);
  append_little_endian(out, 0, 2);
}

}  // namespace ckpt_streamer::write
