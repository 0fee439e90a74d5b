#include "format/torch_legacy.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "format/open_index.h"
#include "memory_source.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::little_endian;
using testing::MemorySource;
namespace p = testing::pickle;
using namespace std::string_literals;

const std::string kMagic =
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."s;

const std::string kSysInfo = p::dict(
    {{p::text("protocol_version"), p::integer(1001)},
     {p::text("little_endian"), p::boolean(true)}});

// What is not set is what a correct writer writes, for one float storage 'k'
// of 4 elements.
struct File {
  std::string object;
  std::string magic = kMagic;
  std::string version = p::program(p::integer(1001));
  std::string sys_info = p::program(kSysInfo);
  std::string keys = p::program(p::list({p::text("k")}));
  std::string data = little_endian(4, 8) + std::string(16, 'x');

  [[nodiscard]] std::string bytes() const {
    return magic + version + sys_info + p::program(object) + keys + data;
  }
  // Where the first byte of `part` lies.
  [[nodiscard]] std::string place(const std::string& part) const {
    return " [byte " + std::to_string(bytes().find(part)) + "]";
  }
};

CheckpointIndex read(const File& file) {
  return read_index(MemorySource(file.bytes()));
}

void expect_error(const File& file, const std::string& message) {
  EXPECT_THROWS(CheckpointError, "m.pt: " + message, read(file));
}

const std::string kNoView = "N";

std::string view(const std::string& key, int32_t offset, int32_t count) {
  return p::tuple({key, p::integer(offset), p::integer(count)});
}

std::string storage(
    const std::string& type,
    const std::string& key,
    int32_t count,
    const std::string& storage_view = kNoView) {
  return p::tuple(
             {p::text("storage"),
              p::global("torch", type),
              key,
              p::text("cpu"),
              p::integer(count),
              storage_view}) +
         "Q";
}

std::string floats(
    const std::string& storage_value,
    int32_t offset,
    int32_t count) {
  return p::tensor(
      storage_value,
      offset,
      p::integers({count}),
      p::integers({1}));
}

std::string float_storage(const std::string& storage_view = kNoView) {
  return storage("FloatStorage", p::text("k"), 4, storage_view);
}

TEST(legacy_reads_a_tensor) {
  const File file{.object = floats(float_storage(), 1, 3)};
  const CheckpointIndex index = read(file);
  EXPECT_EQ(index.files.size(), 1U);
  EXPECT_EQ(index.slots.size(), 1U);
  EXPECT_EQ(index.storages.size(), 1U);
  const uint64_t end = file.bytes().size();
  EXPECT(index.storages[0].file_range == (ByteRange{end - 16, end}));
  EXPECT(index.file_range(index.tensors[0]) == (ByteRange{end - 12, end}));
}

TEST(legacy_magic_number_of_each_protocol) {
  const std::string number =
      "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"s;
  const std::string frame = "\x95" + little_endian(13, 8);
  for (const std::string& magic :
       {"L119547037146038801333356L\n."s,
        "\x80\x02"s + number + ".",
        "\x80\x03"s + number + ".",
        "\x80\x04"s + frame + number + ".",
        "\x80\x05"s + frame + number + "."}) {
    EXPECT(is_torch_legacy(magic));
    const File file{.object = floats(float_storage(), 0, 4), .magic = magic};
    EXPECT_EQ(read(file).tensors.size(), 1U);
  }
  for (const std::string& other :
       {""s,
        "\x80"s,
        "\x80\x06"s + number + ".",
        "\x80\x02"s + number,
        "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x18."s,
        "L119547037146038801333357L\n."s}) {
    EXPECT(!is_torch_legacy(other));
  }
}

TEST(legacy_storages_lie_one_behind_the_other) {
  const File file{
      .object = p::list(
          {floats(storage("FloatStorage", p::text("b"), 2), 0, 2),
           p::tensor(
               storage("ByteStorage", p::text("a"), 3),
               0,
               p::integers({3}),
               p::integers({1})),
           floats(storage("FloatStorage", p::text("e"), 0), 0, 0)}),
      .keys = p::program(p::list({p::text("a"), p::text("e"), p::text("b")})),
      .data = little_endian(3, 8) + "aaa" + little_endian(0, 8) +
              little_endian(2, 8) + "bbbbbbbb" + "what follows"};
  const CheckpointIndex index = read(file);
  const uint64_t data = file.bytes().find("aaa");
  const auto range_of = [&](size_t i) {
    return index.storages[index.tensors[i].storage_index].file_range;
  };
  EXPECT(range_of(0) == (ByteRange{data + 19, data + 27}));
  EXPECT(range_of(1) == (ByteRange{data, data + 3}));
  EXPECT(range_of(2) == (ByteRange{data + 11, data + 11}));
}

TEST(legacy_keys_may_be_ints) {
  const File file{
      .object = floats(
          storage("FloatStorage", p::integer(7), 4, view(p::integer(8), 0, 4)),
          0,
          4),
      .keys = p::program(p::list({p::integer(7)}))};
  const CheckpointIndex index = read(file);
  const uint64_t end = file.bytes().size();
  EXPECT(index.file_range(index.tensors[0]) == (ByteRange{end - 16, end}));
}

TEST(legacy_views_share_their_root) {
  const std::string part = float_storage(view(p::text("v"), 1, 2));
  const File file{
      .object = p::list(
          {floats(part, 1, 1),
           floats(part, 0, 2),
           floats(float_storage(), 0, 4)})};
  const CheckpointIndex index = read(file);
  EXPECT_EQ(index.storages.size(), 1U);
  const uint64_t begin = index.storages[0].file_range.begin;
  const auto range_of = [&](size_t i) {
    return index.file_range(index.tensors[i]);
  };
  EXPECT(range_of(0) == (ByteRange{begin + 8, begin + 12}));
  EXPECT(range_of(1) == (ByteRange{begin + 4, begin + 12}));
  EXPECT(range_of(2) == (ByteRange{begin, begin + 16}));
}

// A pickle of classes puts their source beside them.
TEST(legacy_passes_over_the_sources_of_modules) {
  const std::string module = p::tuple(
                                 {p::text("module"),
                                  p::global("nets", "Net"),
                                  p::text("nets.py"),
                                  p::text("class Net")}) +
                             "Q";
  const File file{.object = p::list({module, floats(float_storage(), 0, 4)})};
  EXPECT_EQ(read(file).slots.size(), 1U);
}

TEST(legacy_pickles_of_many_windows) {
  std::vector<std::string> values(3, p::text(std::string(100'000, 's')));
  values.push_back("V" + std::string(200'000, 'l') + "\n");
  values.push_back(floats(float_storage(), 0, 4));
  EXPECT_EQ(read({.object = p::list(values)}).slots.size(), 1U);
}

// Every opcode with an argument, so that the scan for the end takes none of it
// for an opcode: each holds a '.', which is STOP.
TEST(legacy_finds_the_end_behind_every_opcode) {
  const std::string one = ".";
  const std::string opcodes =
      "\x80\x02K.0M..0J....0G........0\x8a\x01.0\x8b" + little_endian(1, 4) +
      ".0X" + little_endian(1, 4) + ".0\x8c\x01.0\x8d" + little_endian(1, 8) +
      ".0U\x01.0T" + little_endian(1, 4) + ".0C\x01.0B" + little_endian(1, 4) +
      ".0\x8e" + little_endian(1, 8) + ".0\x96" + little_endian(1, 8) +
      ".0I46\n0L46L\n0F4.6\n0S'.'\n0V.\n0c.\n.\n0(i.\n.\n0" +
      "Np46\ng46\n00Nq.h.00Nr....j....00";
  EXPECT_EQ(
      read({.object = opcodes + floats(float_storage(), 0, 4)}).slots.size(),
      1U);
}

TEST(legacy_with_something_else_in_place_of_a_part) {
  File file{.object = floats(float_storage(), 0, 4)};
  file.version = p::program(p::text("1001"));
  expect_error(
      file,
      "the protocol version is '1001', expected 1001" +
          file.place(file.version));
  file.version = p::program(p::integer(1000));
  expect_error(
      file,
      "the protocol version is 1000, expected 1001" + file.place(file.version));

  file = {.object = file.object};
  file.sys_info = p::program(p::list({}));
  expect_error(
      file,
      "the sys_info is <object>, expected a dict" + file.place(file.sys_info));
  file.sys_info =
      p::program(p::dict({{p::text("little_endian"), p::boolean(false)}}));
  expect_error(
      file,
      "was saved on a big-endian machine ('little_endian' of the sys_info is "
      "False), expected little-endian" +
          file.place(file.sys_info));
  file.sys_info =
      p::program(p::dict({{p::text("little_endian"), p::integer(1)}}));
  expect_error(
      file,
      "'little_endian' of the sys_info is 1, expected a bool" +
          file.place(file.sys_info));

  file = {.object = file.object};
  file.keys = p::program(p::dict({}));
  expect_error(
      file,
      "the storage keys are <object>, expected a list" + file.place(file.keys));
  file.keys = p::program(p::list({"N"}));
  expect_error(
      file,
      "the list of storage keys has None, expected strings or ints" +
          file.place(file.keys));
  file.keys = p::program(p::list({p::integer(7), p::text("7")}));
  expect_error(
      file,
      "the list of storage keys has '7' twice, expected distinct keys" +
          file.place(file.keys));
}

TEST(legacy_that_ends_too_early) {
  const File file{.object = floats(float_storage(), 0, 4)};
  const std::string whole = file.bytes();
  for (size_t size = kMagic.size(); size < whole.size(); ++size) {
    try {
      (void)read_index(MemorySource(whole.substr(0, size)));
    } catch (const CheckpointError& error) {
      const std::string text = error.what();
      EXPECT(
          text.find(
              "the file ends at byte " + std::to_string(size) +
              " inside a pickle, expected a STOP opcode in '") !=
              std::string::npos ||
          text.find("bytes left for storage 'k', expected at least 8 + 16") !=
              std::string::npos);
      continue;
    }
    EXPECT(false);
  }
}

TEST(legacy_with_a_byte_that_is_no_opcode) {
  const File file{.object = "\xff"};
  expect_error(
      file,
      "found byte 0xff, expected a pickle opcode in 'object'" +
          file.place("\xff."));
}

TEST(legacy_with_a_length_beyond_the_file) {
  const File file{.object = "\x8e" + little_endian(~uint64_t{0}, 8)};
  expect_error(
      file,
      "the file ends at byte " + std::to_string(file.bytes().size()) +
          " inside a pickle, expected a STOP opcode in 'object'" +
          file.place("\x80\x02\x8e"));
}

// Of 3 GiB, of which all but the head is zeros.
class HugeSource final : public ByteSource {
 public:
  explicit HugeSource(std::string head) : head_(std::move(head)) {}
  [[nodiscard]] const std::string& path() const noexcept override {
    return path_;
  }
  [[nodiscard]] uint64_t size_bytes() const noexcept override {
    return uint64_t{3} << 30;
  }
  void read(uint64_t file_offset, std::span<std::byte> out) const override {
    std::fill(out.begin(), out.end(), std::byte{0});
    if (file_offset < head_.size()) {
      std::memcpy(
          out.data(),
          head_.data() + file_offset,
          std::min<size_t>(out.size(), head_.size() - file_offset));
    }
  }
  [[nodiscard]] ByteView view(const ByteRange&) const override {
    throw CheckpointError(ErrorKind::kIo, path_, "was viewed");
  }

 private:
  std::string path_ = "huge.pt";
  std::string head_;
};

TEST(legacy_pickle_of_gigabytes_is_not_loaded) {
  const std::string head =
      kMagic + "\x8e" + little_endian(uint64_t{1} << 31, 8);
  EXPECT_THROWS(
      CheckpointError,
      "huge.pt: the pickle has 2147483657 bytes or more, expected less than 2 "
      "GiB in 'protocol version' [byte 15]",
      read_index(HugeSource(head)));
}

TEST(legacy_storages_that_contradict_their_ids) {
  File file{.object = floats(float_storage(), 0, 4)};
  file.data = little_endian(5, 8) + std::string(20, 'x');
  expect_error(
      file,
      "storage 'k' has 5 elements, expected the 4 that its persistent id says" +
          file.place(file.data));
  file.data = little_endian(~uint64_t{0}, 8) + std::string(16, 'x');
  expect_error(
      file,
      "storage 'k' has -1 elements, expected the 4 that its persistent id "
      "says" +
          file.place(file.data));
  file.data = little_endian(4, 8) + std::string(15, 'x');
  expect_error(
      file,
      "the file has 23 bytes left for storage 'k', expected at least 8 + 16" +
          file.place(file.data));

  file = {
      .object = file.object,
      .data = little_endian(4, 8) + "0123456789abcdef"};
  file.keys = p::program(p::list({}));
  expect_error(
      file,
      "tensor '' has the storage 'k', expected one in the list of storage keys "
      "in 'object'" +
          file.place("Q"));
  file.keys = p::program(p::list({p::text("k"), p::text("l")}));
  expect_error(
      file,
      "storage 'l' is in the list of storage keys but in no persistent id, "
      "expected its type and size [byte " +
          std::to_string(file.bytes().size()) + "]");
}

TEST(legacy_persistent_ids_that_are_none) {
  const auto fails = [](const std::string& id, const std::string& text) {
    const File file{.object = floats(id + "Q", 0, 4)};
    expect_error(
        file,
        "found the persistent id " + text +
            ", expected ('storage', type, key, location, count, view)" +
            file.place("Q"));
  };
  const std::string type = p::global("torch", "FloatStorage");
  const std::string key = p::text("k");
  const std::string word = p::text("storage");
  const std::string four = p::integer(4);
  const std::string begin = "('storage', torch.FloatStorage, ";
  // What protocol 0 makes of one.
  fails(p::text("('storage', ...)"), "'('storage', ...)'");
  const File line{.object = "P.\n0" + floats(float_storage(), 0, 4)};
  expect_error(
      line,
      "found the persistent id '.', expected ('storage', type, key, location, "
      "count, view)" +
          line.place("P."));
  // The five parts of the zip format.
  fails(p::tuple({word, type, key, key, four}), begin + "'k', 'k', 4)");
  fails(
      p::tuple({p::text("storages"), type, key, key, four, "N"}),
      "('storages', torch.FloatStorage, 'k', 'k', 4, None)");
  fails(
      p::tuple({word, type, "N", key, four, "N"}),
      begin + "None, 'k', 4, None)");
  fails(
      p::tuple({word, type, key, key, four, "]"}),
      begin + "'k', 'k', 4, <object>)");
  fails(
      p::tuple({word, type, key, key, four, ")"}),
      begin + "'k', 'k', 4, (...))");
  fails(
      p::tuple({word, type, key, key, four, view("N", 0, 0)}),
      begin + "'k', 'k', 4, (...))");
}

TEST(legacy_storages_declared_in_two_ways) {
  File file{
      .object = p::list(
          {floats(float_storage(), 0, 4),
           floats(storage("FloatStorage", p::text("k"), 3), 0, 3)})};
  const std::string second =
      " [byte " + std::to_string(file.bytes().rfind('Q')) + "]";
  expect_error(
      file,
      "storage 'k' has 12 bytes, expected 16 as before" + second);

  file.object = floats(storage("FloatStorage", p::text("k"), -1), 0, 4);
  expect_error(
      file,
      "storage 'k' has the size -1, expected a number of elements" +
          file.place("Q"));
  file.object = floats(
      p::tuple(
          {p::text("storage"),
           p::text("t"),
           p::text("k"),
           p::text("cpu"),
           p::integer(4),
           "N"}) +
          "Q",
      0,
      4);
  expect_error(
      file,
      "storage 'k' is of the type 't', expected a storage of plain numbers" +
          file.place("Q"));
  file.object = floats(storage("StrangeStorage", p::text("k"), 4), 0, 4);
  expect_error(
      file,
      "storage 'k' is of the type torch.StrangeStorage, expected a storage of "
      "plain numbers" +
          file.place("Q"));
}

TEST(legacy_views_that_do_not_fit) {
  const auto fails = [](const std::string& object, const std::string& message) {
    const File file{.object = object};
    expect_error(
        file,
        message + " [byte " + std::to_string(file.bytes().rfind("tQ") + 1) +
            "]");
  };
  const auto one = [](const std::string& storage_view) {
    return floats(float_storage(storage_view), 0, 1);
  };
  fails(
      one(view(p::text("v"), 3, 2)),
      "view 'v' has the offset 3 and the size 2, expected both inside the 16 "
      "bytes of storage 'k'");
  fails(
      one(view(p::text("v"), -1, 2)),
      "view 'v' has the offset -1 and the size 2, expected both inside the 16 "
      "bytes of storage 'k'");
  fails(
      one(view(p::text("k"), 0, 4)),
      "view 'k' of storage 'k' has the key of a storage, expected one of its "
      "own");
  fails(
      p::list({one(view(p::text("v"), 0, 2)), one(view(p::text("v"), 0, 3))}),
      "view 'v' is of bytes [0, 12) of storage 'k', expected the same bytes as "
      "before");
}

TEST(legacy_tensors_stay_inside_their_view) {
  const File file{
      .object = floats(float_storage(view(p::text("v"), 1, 2)), 1, 2)};
  expect_error(
      file,
      "tensor '' reaches to byte 12 of record 'k', expected at most its 8 "
      "bytes "
      "in 'object'" +
          file.place("R."));
  // Nothing to be out of bounds, but an offset that no tensor has.
  const File empty{
      .object = p::tensor(
          float_storage(view(p::text("v"), 1, 2)),
          0,
          p::integers({0}),
          p::integers({1}))};
  EXPECT_EQ(read(empty).tensors[0].storage_offset_elements, 1U);
}

}  // namespace
}  // namespace ckpt_streamer::format
