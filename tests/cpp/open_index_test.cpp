#include "format/open_index.h"

#include <algorithm>

#include "memory_source.h"
#include "safetensors_file.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using namespace std::literals;
using testing::build_zip;
using testing::MemorySource;
namespace p = testing::pickle;

CheckpointIndex read(const std::string& file) {
  const MemorySource source(file);
  return read_index(source);
}

void expect_error(const std::string& file, const std::string& message) {
  EXPECT_THROWS(CheckpointError, message, read(file));
}

std::string small_checkpoint() {
  const std::string shared = p::put(p::float_vector("0", 4), 1);
  const std::string root = p::ordered_dict(
      {{p::text("a"), shared},
       {p::text("b"), p::get(1)},
       {p::integer(7),
        p::list(
            {p::reduce(
                 p::global("torch._utils", "_rebuild_parameter"),
                 {p::float_vector("1", 2),
                  p::boolean(true),
                  p::ordered_dict({})}),
             "F1.5\n",
             "L123456789012345678901234567890\n",
             p::tuple({p::boolean(true), "N"})})}});
  testing::ZipRecord wide{"a/data/1", std::string(8, 'y')};
  wide.is_zip64 = true;
  testing::ZipOptions options;
  options.is_zip64 = true;
  return build_zip(
      {{"a/data.pkl", p::program(root)},
       {"a/byteorder", "little"},
       {"a/data/0", std::string(16, 'x')},
       wide,
       {"a/version", "3\n"}},
      options);
}

TEST(reads_a_checkpoint) {
  const CheckpointIndex index = read(small_checkpoint());
  EXPECT_EQ(index.slots.size(), 3U);
  EXPECT_EQ(index.slot_name(2), "7.0");
  EXPECT_EQ(index.tensors.size(), 2U);
}

TEST(refuses_an_empty_file) {
  expect_error(
      "",
      "m.pt: is empty, expected a torch.save, TorchScript or safetensors file");
}

TEST(shows_the_first_bytes_of_unknown_files) {
  expect_error(
      "hello",
      "m.pt: begins with 68 65 6c 6c 6f, expected a torch.save, TorchScript or "
      "safetensors file [byte 0]");
  expect_error(
      std::string(1000, '\0'),
      "m.pt: begins with 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00, "
      "expected a torch.save, TorchScript or safetensors file [byte 0]");
  expect_error(
      "P",
      "m.pt: begins with 50, expected a torch.save, TorchScript or safetensors "
      "file [byte 0]");
}

TEST(reads_safetensors) {
  const std::string file = testing::safetensors_file(
      "{" + testing::safetensors_entry("w", "U8", "1", "0,1") + "}",
      "x");
  EXPECT_EQ(read(file).slot_name(0), "w");
  EXPECT_EQ(read(file).files[0].path, "m.pt");
  EXPECT_EQ(read(small_checkpoint()).files[0].path, "m.pt");
  expect_error(
      file + "x",
      "m.pt: the last tensor ends at byte 62, expected byte 63, the file's end "
      "[byte 62]");
}

TEST(names_zip_files_of_others) {
  expect_error(
      build_zip({}),
      "m.pt: is a zip file without records, expected a torch.save, TorchScript "
      "or safetensors file");
  expect_error(
      build_zip({{"word/document.xml", "x"}}),
      "m.pt: is a zip file of 1 records ('word/document.xml'), expected "
      "'word/data.pkl' as torch.save writes");
  expect_error(
      build_zip({{"a", ""}, {"b", ""}, {"c", ""}, {"d", ""}}),
      "m.pt: is a zip file of 4 records ('a', 'b', 'c', ...), expected "
      "'a/data.pkl' as torch.save writes");
  expect_error(
      build_zip({{"x.npy", ""}, {"y.npy", ""}}),
      "m.pt: is a NumPy .npz file, which is not read; expected a torch.save, "
      "TorchScript or safetensors file");
  expect_error(
      build_zip({{"m/code/x.py", ""}}),
      "m.pt: is a zip file of 1 records ('m/code/x.py'), expected 'm/data.pkl' "
      "as torch.save writes");
}

TEST(refuses_a_truncated_checkpoint) {
  const std::string file = small_checkpoint();
  expect_error(
      file.substr(0, 100),
      "m.pt: is truncated: no end of central directory record in its last 100 "
      "bytes, expected a whole zip file");
}

// Whatever a file says, the answer is an index or a CheckpointError, and an
// index keeps its promises. Run under the sanitizers, this also shows that no
// byte outside the file is read.
void expect_sane(const std::string& file) {
  try {
    const CheckpointIndex index = read(file);
    const ByteRange whole{0, file.size()};
    for (const StorageRecord& storage : index.storages) {
      EXPECT(storage.file_range.begin <= storage.file_range.end);
      EXPECT(whole.contains(storage.file_range));
    }
    for (const TensorRecord& tensor : index.tensors) {
      EXPECT(index.storages.at(tensor.storage_index)
                 .file_range.contains(index.file_range(tensor)));
    }
    for (const Slot& slot : index.slots) {
      EXPECT(slot.tensor_index < index.tensors.size());
    }
  } catch (const CheckpointError&) {
  }
}

TEST(every_truncation_is_refused_or_read) {
  const std::string file = small_checkpoint();
  for (size_t size = 0; size <= file.size(); ++size) {
    expect_sane(file.substr(0, size));
  }
}

TEST(every_mutation_is_refused_or_read) {
  const std::string file = small_checkpoint();
  // Numerical Recipes' generator: the same mutations in every run.
  uint64_t state = 1;
  const auto random_below = [&state](uint64_t bound) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return (state >> 33) % bound;
  };
  constexpr std::string_view kInteresting = "\x00\x01\x7f\x80\xff().0eutRQq"sv;
  for (int round = 0; round < 20'000; ++round) {
    std::string mutant = file;
    const uint64_t change_count = 1 + random_below(4);
    for (uint64_t i = 0; i < change_count; ++i) {
      const size_t at = random_below(mutant.size());
      switch (random_below(5)) {
        case 0:
          mutant[at] = static_cast<char>(mutant[at] ^ (1 << random_below(8)));
          break;
        case 1:
          mutant[at] = static_cast<char>(random_below(256));
          break;
        case 2:
          mutant[at] = kInteresting[random_below(kInteresting.size())];
          break;
        case 3:
          mutant.replace(
              at,
              std::min<size_t>(8, mutant.size() - at),
              std::string(std::min<size_t>(8, mutant.size() - at), '\xff'));
          break;
        default:
          std::swap(mutant[at], mutant[random_below(mutant.size())]);
          break;
      }
    }
    expect_sane(mutant);
  }
}

// The same in the header of a safetensors file.
TEST(every_mutated_safetensors_header_is_refused_or_read) {
  const std::string header =
      R"({"__metadata__":{"a":"\u00e9\n"},"a":{"dtype":"F32","shape":[2,1],)"
      R"("data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[],)"
      R"("data_offsets":[8,10],"x":[{"y":-1.5e3}]}})";
  const std::string file =
      testing::safetensors_file(header, std::string(10, 'x'));
  EXPECT_EQ(read(file).slots.size(), 2U);
  for (size_t size = 0; size < file.size(); ++size) {
    expect_sane(file.substr(0, size));
  }
  uint64_t state = 3;
  const auto random_below = [&state](uint64_t bound) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return (state >> 33) % bound;
  };
  constexpr std::string_view kInteresting = "{}[]\",:\\u09-e. \xff"sv;
  for (int round = 0; round < 20'000; ++round) {
    std::string mutant = file;
    const uint64_t change_count = 1 + random_below(3);
    for (uint64_t i = 0; i < change_count; ++i) {
      const size_t at = random_below(8 + header.size());
      mutant[at] = random_below(2) == 0
                       ? kInteresting[random_below(kInteresting.size())]
                       : mutant[8 + random_below(header.size())];
    }
    expect_sane(mutant);
  }
}

// The same inside the pickle only, so that the zip around it stays whole.
TEST(every_mutated_pickle_is_refused_or_read) {
  const std::string file = small_checkpoint();
  const size_t begin = file.find("\x80\x02");
  const size_t end = file.find("PK\x03\x04", begin);
  uint64_t state = 2;
  const auto random_below = [&state](uint64_t bound) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return (state >> 33) % bound;
  };
  for (int round = 0; round < 20'000; ++round) {
    std::string mutant = file;
    const uint64_t change_count = 1 + random_below(3);
    for (uint64_t i = 0; i < change_count; ++i) {
      const size_t at = begin + random_below(end - begin);
      mutant[at] = random_below(2) == 0
                       ? mutant[begin + random_below(end - begin)]
                       : static_cast<char>(random_below(256));
    }
    expect_sane(mutant);
  }
}

}  // namespace
}  // namespace ckpt_streamer::format
