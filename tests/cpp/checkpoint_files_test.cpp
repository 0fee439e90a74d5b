#include "format/checkpoint_files.h"

#include <vector>

#include "base/error.h"
#include "format/shard_index.h"
#include "memory_opener.h"
#include "safetensors_file.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::MemoryOpener;
using testing::MemorySource;
using testing::safetensors_entry;
using testing::safetensors_file;
namespace p = testing::pickle;

// A safetensors file of one uint8 tensor, of one element.
std::string shard_of(const std::string& name) {
  return safetensors_file(
      "{\"__metadata__\":{\"from\":\"" + name + "\"}," +
          safetensors_entry(name, "U8", "1", "0,1") + "}",
      "x");
}

std::string index_of(const std::string& weight_map) {
  return "{\"metadata\": {\"total_size\": 2},\n \"weight_map\": {" +
         weight_map + "}}\n";
}

// Two shards beside their index, which says that they hold this.
CheckpointIndex read_shards(const std::string& weight_map) {
  MemoryOpener opener;
  opener.add("d/i.json", index_of(weight_map));
  opener.add("d/s1", shard_of("a"));
  opener.add("d/s2", shard_of("b"));
  return read_checkpoint("d/i.json", opener);
}

void expect_shards_error(
    const std::string& weight_map,
    const std::string& message) {
  EXPECT_THROWS(CheckpointError, message, read_shards(weight_map));
}

ShardIndex parse(const std::string& text) {
  const MemorySource source(text);
  return read_shard_index(source);
}

void expect_index_error(const std::string& text, const std::string& message) {
  EXPECT_THROWS(CheckpointError, "m.pt: " + message, parse(text));
}

TEST(shards_are_one_checkpoint_in_the_order_of_their_names) {
  const CheckpointIndex index = read_shards(R"("b":"s2","a":"s1")");
  EXPECT_EQ(index.files.size(), 2U);
  EXPECT_EQ(index.files[0].path, "d/s1");
  EXPECT_EQ(index.files[1].path, "d/s2");
  EXPECT_EQ(index.files[1].metadata[0].value, "b");
  EXPECT_EQ(index.metadata.size(), 1U);
  EXPECT_EQ(index.metadata[0].name, "total_size");
  EXPECT_EQ(index.metadata[0].value, "2");
  EXPECT_EQ(index.slots.size(), 2U);
  for (uint32_t i = 0; i < 2; ++i) {
    EXPECT_EQ(index.slot_name(i), i == 0 ? "a" : "b");
    const TensorRecord& tensor = index.tensors[index.slots[i].tensor_index];
    EXPECT_EQ(index.storages[tensor.storage_index].file_index, i);
    EXPECT_EQ(index.sizes(tensor)[0], 1);
    EXPECT_EQ(index.strides(tensor)[0], 1);
  }
}

TEST(shards_may_hold_more_than_the_index_says) {
  EXPECT_EQ(read_shards(R"("a":"s1")").slots.size(), 1U);
  MemoryOpener opener;
  opener.add("i.json", index_of(R"("a":"s")"));
  opener.add(
      "s",
      safetensors_file(
          "{" + safetensors_entry("a", "U8", "1", "0,1") + "," +
              safetensors_entry("c", "U8", "1", "1,2") + "}",
          "xy"));
  EXPECT_EQ(read_checkpoint("i.json", opener).slot_name(1), "c");
}

TEST(shards_of_torch_save_are_read) {
  const auto shard = [](const std::string& name) {
    return testing::build_zip(
        {{"a/data.pkl",
          p::program(p::dict({{p::text(name), p::float_vector("0", 1)}}))},
         {"a/data/0", "1234"}});
  };
  MemoryOpener opener;
  opener.add("/x/i.json", index_of(R"("a":"sub/1.bin","b":"sub/2.bin")"));
  opener.add("/x/sub/1.bin", shard("a"));
  opener.add("/x/sub/2.bin", shard("b"));
  const CheckpointIndex index = read_checkpoint("/x/i.json", opener);
  EXPECT_EQ(index.files[1].path, "/x/sub/2.bin");
  EXPECT_EQ(index.slot_name(1), "b");
  EXPECT_EQ(index.storages[1].file_index, 1U);
}

TEST(shards_and_index_agree) {
  expect_shards_error(
      R"("a":"s1","b":"s1")",
      "d/i.json: shard 's1' has no tensor 'b', expected it there as "
      "'weight_map' says");
  expect_shards_error(
      R"("a":"s2","b":"s1")",
      "d/i.json: shard 's1' has the tensor 'a', expected it in 's2' as "
      "'weight_map' says");
  expect_shards_error(
      R"("a":"s1","b":"s2","c":"s2")",
      "d/i.json: shard 's2' has no tensor 'c', expected it there as "
      "'weight_map' says");
  expect_shards_error(
      R"("a":"s1","b":"s3")",
      "d/s3: cannot open: no such file");
  expect_shards_error(
      R"("a":"i.json")",
      "d/i.json: is JSON, such as an index of shards, which is not read; "
      "expected a torch.save, TorchScript or safetensors file");
}

TEST(shards_have_names_inside_the_directory) {
  const auto expect_refused = [](const std::string& in_json,
                                 const std::string& shown,
                                 const std::string& found) {
    expect_index_error(
        "{\"weight_map\":{\"a\":\"" + in_json + "\"}}",
        "has the shard " + shown + ", which " + found +
            "; expected a path inside the index's directory [byte 19]");
  };
  expect_refused("", "''", "is empty");
  expect_refused("/etc/passwd", "'/etc/passwd'", "is absolute");
  expect_refused("s\\u0000.bin", "'s\\x00.bin'", "holds a NUL character");
  for (const char* const name :
       {"..", "../s", "a/../../s", "a/..", "a//..//s"}) {
    expect_refused(name, "'" + std::string(name) + "'", "has a '..' part");
  }
  const ShardIndex index =
      parse(R"({"weight_map":{"a":"..s","b":"x..","c":"./s","d":"a/...b"}})");
  EXPECT_EQ(index.shard_names.size(), 4U);
}

TEST(shard_index_keeps_metadata_as_text) {
  const ShardIndex index = parse(
      R"({"x":[],"metadata":{"total_size":1e3,"note":"\u0041","l":[1, {}]},)"
      R"("weight_map":{"b":"2","a":"1","c":"2"}})");
  EXPECT_EQ(index.metadata.size(), 3U);
  EXPECT_EQ(index.metadata[0].value, "1e3");
  EXPECT_EQ(index.metadata[1].value, "A");
  EXPECT_EQ(index.metadata[2].value, "[1, {}]");
  EXPECT_EQ(index.shard_names.size(), 2U);
  EXPECT_EQ(index.placements[0].tensor_name, "b");
  EXPECT_EQ(index.placements[0].shard, 1U);
  EXPECT_EQ(index.placements[1].shard, 0U);
  EXPECT_EQ(index.placements[2].shard, 1U);
  EXPECT(parse(R"({"metadata":null,"weight_map":{"a":"s"}})").metadata.empty());
}

TEST(shard_index_refuses_bad_files) {
  expect_index_error(
      "{}",
      "is a JSON object without 'weight_map', expected an index of shards "
      "[byte 0]");
  expect_index_error(
      R"({"weight_map":{}})",
      "has an empty 'weight_map', expected a shard for each tensor [byte 14]");
  expect_index_error(
      R"({"weight_map":["a"]})",
      "found an array, expected an object as weight_map in the index of shards "
      "[byte 14]");
  expect_index_error(
      R"({"weight_map":{"a":1}})",
      "found a number, expected a string as the shard of tensor 'a' in the "
      "index of shards [byte 19]");
  expect_index_error(
      R"({"weight_map":{"a":"s","a":"s"}})",
      "has the tensor 'a' twice in 'weight_map', expected distinct names [byte "
      "14]");
  expect_index_error(
      R"({"weight_map":{"a":"s"},"weight_map":{"b":"s"}})",
      "has 'weight_map' twice, expected it once [byte 37]");
  expect_index_error(
      R"({"metadata":{},"metadata":{}})",
      "has 'metadata' twice, expected it once [byte 26]");
  expect_index_error(
      R"({"metadata":1})",
      "found a number, expected an object as the metadata in the index of "
      "shards [byte 12]");
  expect_index_error(
      R"({"weight_map":{"a":"s"}} ])",
      "found ']', expected the end in the index of shards [byte 25]");
}

TEST(shard_index_is_bounded) {
  // Only its size is looked at.
  class Large final : public ByteSource {
   public:
    const std::string& path() const noexcept override {
      return path_;
    }
    uint64_t size_bytes() const noexcept override {
      return 100'000'001;
    }
    void read(uint64_t, std::span<std::byte>) const override {
      throw CheckpointError(ErrorKind::kIo, path_, "was read");
    }
    ByteView view(const ByteRange&) const override {
      throw CheckpointError(ErrorKind::kIo, path_, "was viewed");
    }

   private:
    std::string path_ = "m.json";
  };
  EXPECT_THROWS(
      CheckpointError,
      "m.json: is JSON of 100000001 bytes, expected an index of shards of at "
      "most 100000000",
      read_shard_index(Large()));
}

TEST(paths_are_one_checkpoint_in_their_order) {
  MemoryOpener opener;
  opener.add("2", shard_of("b"));
  opener.add("1", shard_of("a"));
  opener.add("i.json", index_of(R"("a":"1")"));
  const std::vector<std::string> paths{"2", "1", "2"};
  const CheckpointIndex index = read_checkpoint(paths, opener);
  EXPECT_EQ(index.files.size(), 3U);
  EXPECT_EQ(index.files[0].path, "2");
  EXPECT_EQ(index.slot_name(0), "b");
  EXPECT_EQ(index.slot_name(1), "a");
  EXPECT_EQ(index.slot_name(2), "b");
  EXPECT_EQ(index.storages[2].file_index, 2U);
  EXPECT_EQ(index.slots[2].tensor_index, 2U);
  EXPECT_THROWS(
      CheckpointError,
      "the list of paths is empty, expected the path of a checkpoint file",
      read_checkpoint(std::span<const std::string>(), opener));
  const std::vector<std::string> with_index{"2", "i.json"};
  EXPECT_THROWS(
      CheckpointError,
      "i.json: is JSON, such as an index of shards, which is not read; "
      "expected a torch.save, TorchScript or safetensors file",
      read_checkpoint(with_index, opener));
}

TEST(urls_are_named) {
  MemoryOpener opener;
  const auto expect_url = [&](const std::string& url, const char* scheme) {
    EXPECT_THROWS(
        CheckpointError,
        url + ": is a URL (" + scheme +
            "), which is not read; expected the path of a local file",
        read_checkpoint(url, opener));
  };
  expect_url("https://huggingface.co/gpt2/resolve/main/x.bin", "https");
  expect_url("hf://gpt2/model.safetensors", "hf");
  expect_url("s3://bucket/key", "s3");
  expect_url("git+ssh://host/x", "git+ssh");
  expect_url("file:///tmp/x", "file");
  for (const char* const path :
       {"c://x", "1a://x", "a b://x", "://x", "a:/x"}) {
    EXPECT_THROWS(
        CheckpointError,
        std::string(path) + ": cannot open: no such file",
        read_checkpoint(path, opener));
  }
}

TEST(directories_are_named) {
  const auto expect_directory = [](const std::string& file,
                                   const std::string& message) {
    MemoryOpener opener;
    opener.add("d/" + file, "x");
    EXPECT_THROWS(
        CheckpointError,
        "d: " + message,
        read_checkpoint("d", opener));
  };
  expect_directory(
      ".metadata",
      "is the directory of a distributed checkpoint, which is not read; "
      "expected a torch.save, TorchScript or safetensors file");
  expect_directory(
      "saved_model.pb",
      "is the directory of a TensorFlow SavedModel, which is not read; "
      "expected a torch.save, TorchScript or safetensors file");
  for (const char* const name :
       {"model.safetensors.index.json",
        "model.safetensors",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors",
        "adapter_model.safetensors"}) {
    expect_directory(
        name,
        "is a directory, expected the path of the '" + std::string(name) +
            "' in it");
  }
  expect_directory("x", "is a directory, expected a checkpoint file");
}

}  // namespace
}  // namespace ckpt_streamer::format
