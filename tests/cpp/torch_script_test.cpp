#include "format/torch_script.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "format/open_index.h"
#include "format/zip_directory.h"
#include "memory_source.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::build_zip;
using testing::MemorySource;
using testing::ZipRecord;
namespace p = testing::pickle;

// An instance of a class of TorchScript whose state is `state`.
std::string object(const std::string& name, const std::string& state) {
  return p::global("__torch__", name) + ")\x81" + state + "b";
}

std::string module(const p::Entries& attributes) {
  return object("M", p::dict(attributes));
}

std::string tagged(const std::string& value) {
  return p::reduce(
      p::global("torch.jit._pickle", "restore_type_tag"),
      {value, p::text("List[Tensor]")});
}

std::vector<ZipRecord> archive_of(
    const std::string& root,
    const std::string& constants = ")") {
  return {
      {"m/data/0", "0123"},
      {"m/data/1", "01234567"},
      {"m/data.pkl", p::program(root)},
      {"m/code/__torch__.py", "compressed", 8},
      {"m/constants/0", "4567"},
      {"m/constants/0.storage", "89ab"},
      {"m/constants.pkl", p::program(constants)},
      {"m/version", "3\n"},
      {"m/byteorder", "little"}};
}

CheckpointIndex read(const std::vector<ZipRecord>& records) {
  const MemorySource source(build_zip(records));
  return read_index(source);
}

// "name=record" of each tensor.
std::string names_in(const std::vector<ZipRecord>& zip_records) {
  const CheckpointIndex index = read(zip_records);
  const MemorySource source(build_zip(zip_records));
  const ZipDirectory directory = ZipDirectory::read(source);
  const auto record_of = [&](const StorageRecord& storage) {
    const auto entries = directory.entries();
    const auto found = std::find_if(
        entries.begin(),
        entries.end(),
        [&](const ZipEntry& entry) {
          return entry.data_range == storage.file_range;
        });
    return found == entries.end() ? "none" : std::string(found->name);
  };
  std::string names;
  for (size_t i = 0; i < index.slots.size(); ++i) {
    const TensorRecord& tensor = index.tensors[index.slots[i].tensor_index];
    names += (names.empty() ? "" : " ") + index.slot_name(i) + "=" +
             record_of(index.storages[tensor.storage_index]);
  }
  return names;
}

std::string names_of(
    const std::string& root,
    const std::string& constants = ")") {
  return names_in(archive_of(root, constants));
}

TEST(script_names_are_attribute_paths) {
  EXPECT_EQ(
      names_of(module(
          {{p::text("training"), p::boolean(true)},
           {p::text("weight"), p::float_vector("0", 1)},
           {p::text("none"), "N"},
           {p::text("layer"),
            module(
                {{p::text("0"),
                  module({{p::text("bias"), p::float_vector("1", 2)}})}})}})),
      "weight=m/data/0 layer.0.bias=m/data/1");
}

TEST(script_lists_and_dicts_are_behind_their_type_tags) {
  const std::string list = p::reduce(
      p::global("torch.jit._pickle", "build_tensorlist"),
      {p::list({p::put(p::float_vector("0", 1), 1), p::get(1)})});
  EXPECT_EQ(
      names_of(module(
          {{p::text("old"), list},
           {p::text("list"), tagged(p::list({p::get(1)}))},
           {p::text("dict"),
            tagged(p::dict({{p::text("k"), tagged(p::list({p::get(1)}))}}))},
           {p::text("tuple"), p::tuple({p::integer(1), p::get(1)})}})),
      "old.0=m/data/0 old.1=m/data/0 list.0=m/data/0 dict.k.0=m/data/0 "
      "tuple.1=m/data/0");
}

TEST(script_constants_come_last_by_their_index) {
  EXPECT_EQ(
      names_of(
          module({{p::text("w"), p::float_vector("0", 1)}}),
          p::tuple(
              {p::float_vector("0", 1),
               p::text("text"),
               p::list({p::float_vector("0.storage", 1)})})),
      "w=m/data/0 constants.0=m/constants/0 "
      "constants.2.0=m/constants/0.storage");
}

TEST(script_objects_may_make_their_own_state) {
  EXPECT_EQ(
      names_of(module(
          {{p::text("packed"),
            object(
                "torch.classes.quantized.LinearPackedParamsBase",
                p::tuple({p::float_vector("0", 1), "N"}))},
           {p::text("one"), object("One", p::float_vector("1", 2))},
           {p::text("none"), p::global("__torch__", "Empty") + ")\x81"}})),
      "packed.0=m/data/0 one=m/data/1");
}

// pickler.cpp gives REDUCE the value itself.
TEST(script_enums_are_passed_over) {
  EXPECT_EQ(
      names_of(module(
          {{p::text("color"),
            p::global("__torch__", "Color") + p::integer(1) + "R"},
           {p::text("shade"),
            p::global("__torch__.a.b", "Shade") + p::text("dark") + "R"},
           {p::text("w"), p::float_vector("0", 1)}})),
      "w=m/data/0");
}

TEST(script_modules_that_are_shared_have_all_their_names) {
  const std::string shared =
      p::put(module({{p::text("w"), p::float_vector("0", 1)}}), 7);
  const std::vector<ZipRecord> archive = archive_of(module(
      {{p::text("a"), shared},
       {p::text("b"), module({{p::text("c"), p::get(7)}})}}));
  EXPECT_EQ(names_in(archive), "a.w=m/data/0 b.c.w=m/data/0");
  const CheckpointIndex index = read(archive);
  EXPECT_EQ(index.tensors.size(), 1U);
  EXPECT_EQ(index.storages.size(), 1U);
}

TEST(script_cycles_end) {
  // A dict that holds itself.
  EXPECT_EQ(
      names_of(module(
          {{p::text("d"),
            p::put("}", 1) + "(" + p::text("self") + p::get(1) + p::text("w") +
                p::float_vector("0", 1) + "u"}})),
      "d.w=m/data/0");
  // A module that is an attribute of itself.
  EXPECT_EQ(
      names_of(
          p::put(p::global("__torch__", "M") + ")\x81", 1) +
          p::dict(
              {{p::text("self"), p::get(1)},
               {p::text("w"), p::float_vector("0", 1)}}) +
          "b"),
      "w=m/data/0");
}

void expect_error(
    const std::vector<ZipRecord>& records,
    const std::string& message) {
  EXPECT_THROWS(CheckpointError, "m.pt: " + message, read(records));
}

TEST(script_sharing_does_not_unfold_without_end) {
  // Each module holds the last one twice: 2^40 paths.
  std::string root = module({{p::text("w"), p::float_vector("0", 1)}});
  for (unsigned i = 0; i < 40; ++i) {
    root = module(
        {{p::text("a"), p::put(root, 100 + i)},
         {p::text("b"), p::get(100 + i)}});
  }
  auto records = archive_of(root);
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: the shared containers unfold to more than 36160 values, expected "
      "at most 64 for each of the 565 in 'm/data.pkl' [byte 128]",
      read(records));
  // An object that is its own state.
  expect_error(
      archive_of(
          p::put(p::global("__torch__", "M") + ")\x81", 1) + p::get(1) + "b"),
      "the shared containers unfold to more than 16896 values, expected at "
      "most 64 for each of the 264 in 'm/data.pkl' [byte 128]");
}

TEST(script_archives_that_are_not_read) {
  expect_error(
      {{"m/constants.pkl", p::program(")")}},
      "is a TorchScript archive without 'm/data.pkl', expected one as "
      "torch.jit.save writes");
  expect_error(
      {{"m/version", "1\n"}, {"m/model.json", "{}"}},
      "is a TorchScript archive from before torch 1.4 (it has 'm/model.json'), "
      "which is not read; expected one of a later torch");
  auto records = archive_of(module({}));
  records[8].data = "big";
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: was saved on a big-endian machine ('m/byteorder' is 'big'), "
      "expected little-endian [byte 442]",
      read(records));
  expect_error(
      archive_of(module({{p::text("w"), p::float_vector("5", 1)}})),
      "tensor 'w' has the storage '5', expected a record 'm/data/5' in "
      "'m/data.pkl' [byte 240]");
}

TEST(script_storages_have_the_names_of_scalar_types) {
  const std::pair<const char*, const char*> types[] = {
      {"ComplexHalf", "complex32"},
      {"UInt16", "uint16"},
      {"UInt32", "uint32"},
      {"UInt64", "uint64"},
      {"Float8_e5m2", "float8_e5m2"},
      {"Float8_e4m3fn", "float8_e4m3fn"},
      {"Float8_e5m2fnuz", "float8_e5m2fnuz"},
      {"Float8_e4m3fnuz", "float8_e4m3fnuz"},
      {"Float8_e8m0fnu", "float8_e8m0fnu"},
      {"Float4_e2m1fn_x2", "float4_e2m1fn_x2"}};
  for (const auto& [type, dtype] : types) {
    auto records = archive_of(module(
        {{p::text("w"),
          p::tensor(
              p::storage(std::string(type) + "Storage", "0", 0),
              0,
              p::integers({0}),
              p::integers({1}))}}));
    records[0].data = "";
    EXPECT_EQ(std::string(dtype_name(read(records).tensors[0].dtype)), dtype);
  }
}

}  // namespace
}  // namespace ckpt_streamer::format
