#include "format/torch_zip.h"

#include <set>

#include "format/text.h"
#include "memory_source.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::build_zip;
using testing::MemorySource;
using testing::ZipRecord;
namespace p = testing::pickle;

// A checkpoint with the float storages that the tests need: '0' of 4, '1' of
// 2 and 'e' of none.
std::vector<ZipRecord> records_with(const std::string& root) {
  return {
      {"a/data.pkl", p::program(root)},
      {"a/byteorder", "little"},
      {"a/data/0", std::string(16, 'x')},
      {"a/data/1", std::string(8, 'y')},
      {"a/data/e", ""},
      {"a/version", "3\n"}};
}

CheckpointIndex read(const std::vector<ZipRecord>& records) {
  const MemorySource source(build_zip(records));
  return read_torch_zip(source);
}

CheckpointIndex read_root(const std::string& root) {
  return read(records_with(root));
}

std::string slot_names(const CheckpointIndex& index) {
  std::string names;
  for (size_t i = 0; i < index.slots.size(); ++i) {
    names += (names.empty() ? "" : " ") + index.slot_name(i) + "=" +
             std::to_string(index.slots[i].tensor_index);
  }
  return names;
}

void expect_error(const std::string& root, const std::string& message) {
  EXPECT_THROWS(CheckpointError, message, read_root(root));
}

// A state dict of one tensor 'w'.
std::string weight(const std::string& tensor) {
  return p::dict({{p::text("w"), tensor}});
}

std::string v2(const std::vector<std::string>& args) {
  return p::reduce(p::global("torch._utils", "_rebuild_tensor_v2"), args);
}

TEST(reads_a_tensor) {
  const CheckpointIndex index = read_root(weight(
      p::tensor(
          p::storage("FloatStorage", "0", 4),
          1,
          p::integers({1, 2}),
          p::integers({2, 1}))));
  EXPECT_EQ(slot_names(index), "w=0");
  EXPECT_EQ(index.storages.size(), 1U);
  EXPECT_EQ(index.storages[0].file_range.size_bytes(), 16U);
  const TensorRecord& tensor = index.tensors[0];
  EXPECT(tensor.dtype == DType::kFloat32);
  EXPECT(!tensor.requires_grad);
  EXPECT_EQ(tensor.storage_offset_elements, 1U);
  EXPECT_EQ(tensor.dim_count, 2U);
  EXPECT_EQ(index.sizes(tensor)[1], 2);
  EXPECT_EQ(index.strides(tensor)[0], 2);
  const uint64_t begin = index.storages[0].file_range.begin;
  EXPECT(index.file_range(tensor) == (ByteRange{begin + 4, begin + 12}));
}

TEST(a_bare_tensor_has_the_empty_name) {
  EXPECT_EQ(slot_names(read_root(p::float_vector("0", 4))), "=0");
}

TEST(scalars_and_empty_tensors) {
  const CheckpointIndex index = read_root(
      p::list(
          {p::tensor(
               p::storage("FloatStorage", "0", 4),
               3,
               p::tuple({}),
               p::tuple({})),
           p::tensor(
               p::storage("FloatStorage", "e", 0),
               7,
               p::integers({0, 5}),
               p::integers({5, 1})),
           p::tensor(
               p::storage("FloatStorage", "0", 4),
               0,
               p::integers({1000000, 4}),
               p::integers({0, 1}))}));
  EXPECT_EQ(index.tensors.size(), 3U);
  EXPECT_EQ(index.file_range(index.tensors[0]).size_bytes(), 4U);
  EXPECT(index.file_range(index.tensors[1]).empty());
  EXPECT_EQ(index.file_range(index.tensors[2]).size_bytes(), 16U);
}

TEST(every_storage_type_has_its_dtype) {
  const std::pair<const char*, const char*> types[] = {
      {"DoubleStorage", "float64"},
      {"FloatStorage", "float32"},
      {"HalfStorage", "float16"},
      {"BFloat16Storage", "bfloat16"},
      {"LongStorage", "int64"},
      {"IntStorage", "int32"},
      {"ShortStorage", "int16"},
      {"CharStorage", "int8"},
      {"ByteStorage", "uint8"},
      {"BoolStorage", "bool"},
      {"ComplexDoubleStorage", "complex128"},
      {"ComplexFloatStorage", "complex64"},
      {"UntypedStorage", "uint8"}};
  for (const auto& [storage, dtype] : types) {
    const CheckpointIndex index = read_root(weight(
        p::tensor(
            p::storage(storage, "e", 0),
            0,
            p::integers({0}),
            p::integers({1}))));
    EXPECT_EQ(std::string(dtype_name(index.tensors[0].dtype)), dtype);
  }
}

TEST(every_dtype_has_a_distinct_name_and_a_size) {
  std::set<std::string> names;
  for (int i = 0; i <= static_cast<int>(kLastDType); ++i) {
    names.insert(dtype_name(static_cast<DType>(i)));
    EXPECT(item_size_bytes(static_cast<DType>(i)) != 0);
  }
  EXPECT_EQ(names.size(), 46U);
}

TEST(version_3_rebuilds_name_their_dtype) {
  const auto rebuild = [](const std::string& dtype,
                          bool requires_grad = false) {
    return weight(
        p::reduce(
            p::global("torch._utils", "_rebuild_tensor_v3"),
            {p::storage("UntypedStorage", "0", 16),
             p::integer(2),
             p::integers({6}),
             p::integers({1}),
             p::boolean(requires_grad),
             p::ordered_dict({}),
             p::global("torch", dtype)}));
  };
  const CheckpointIndex index = read_root(rebuild("float8_e4m3fn", true));
  EXPECT(index.tensors[0].dtype == DType::kFloat8E4M3FN);
  EXPECT(index.tensors[0].requires_grad);
  EXPECT_EQ(index.file_range(index.tensors[0]).size_bytes(), 6U);
  EXPECT_EQ(
      read_root(rebuild("uint16"))
          .file_range(read_root(rebuild("uint16")).tensors[0])
          .size_bytes(),
      12U);
  EXPECT(read_root(rebuild("bits8")).tensors[0].dtype == DType::kBits8);
  EXPECT(read_root(rebuild("int7")).tensors[0].dtype == DType::kInt7);
  expect_error(
      rebuild("float3"),
      "m.pt: tensor 'w' has the dtype torch.float3, expected one of torch 2.13 "
      "in 'a/data.pkl' [byte 205]");
  expect_error(
      rebuild("uint8", true),
      "m.pt: tensor 'w' requires a gradient and has the dtype uint8, expected "
      "floating-point or complex numbers in 'a/data.pkl' [byte 204]");
  expect_error(
      rebuild("qint8"),
      "m.pt: tensor 'w' has the dtype qint8 and no quantizer, expected to be "
      "rebuilt by _rebuild_qtensor in 'a/data.pkl' [byte 204]");
  expect_error(
      rebuild("uint32"),
      "m.pt: tensor 'w' reaches to byte 32 of record 'a/data/0', expected at "
      "most its 16 bytes in 'a/data.pkl' [byte 205]");
}

TEST(the_oldest_rebuild_has_four_arguments) {
  const CheckpointIndex index = read_root(weight(
      p::reduce(
          p::global("torch._utils", "_rebuild_tensor"),
          {p::storage("FloatStorage", "0", 4),
           p::integer(0),
           p::reduce(p::global("torch", "Size"), {p::integers({4})}),
           p::list({p::integer(1)})})));
  EXPECT_EQ(index.sizes(index.tensors[0])[0], 4);
}

TEST(parameters_are_their_data) {
  const std::string data = p::float_vector("0", 4);
  const CheckpointIndex index = read_root(
      p::list(
          {p::reduce(
               p::global("torch._utils", "_rebuild_parameter"),
               {data, p::boolean(true), p::ordered_dict({})}),
           p::reduce(
               p::global("torch._utils", "_rebuild_parameter_with_state"),
               {data, p::boolean(false), p::ordered_dict({}), p::dict({})}),
           p::reduce(p::global("torch.nn.parameter", "Parameter"), {data})}));
  EXPECT_EQ(index.tensors.size(), 3U);
  EXPECT(index.tensors[0].requires_grad);
  EXPECT(!index.tensors[1].requires_grad);
  EXPECT(index.tensors[2].requires_grad);
  EXPECT_EQ(index.storages.size(), 1U);
}

TEST(tied_tensors_have_a_slot_for_each_key) {
  const CheckpointIndex index = read_root(
      p::dict(
          {{p::text("a"), p::put(p::float_vector("0", 4), 1)},
           {p::text("b"), p::get(1)},
           {p::text("c"), p::float_vector("0", 4)},
           {p::text("d"), p::list({p::get(1), p::float_vector("1", 2)})}}));
  EXPECT_EQ(slot_names(index), "a=0 b=0 c=1 d.0=0 d.1=2");
  EXPECT_EQ(index.storages.size(), 2U);
}

TEST(names_keys_as_python_does) {
  const std::string t = p::put(p::float_vector("0", 4), 1);
  const CheckpointIndex index = read_root(
      p::dict(
          {{p::text("a.b"), t},
           {p::integer(-3), p::get(1)},
           {p::boolean(true), p::get(1)},
           {"N", p::get(1)},
           {"F1.5\n", p::get(1)},
           {p::text(""), p::dict({{p::text(""), p::get(1)}})},
           {"L36893488147419103232\n", p::get(1)},
           {p::tuple({p::integer(1), p::text("x")}), p::get(1)},
           {p::tuple({p::tuple({"N"})}), p::get(1)},
           {p::global("torch", "int8"), p::get(1)},
           {"C\x01"
            "b",
            p::get(1)}}));
  EXPECT_EQ(
      slot_names(index),
      "a.b=0 -3=0 True=0 None=0 1.5=0 .=0 36893488147419103232=0 "
      "(1, 'x')=0 ((...),)=0 torch.int8=0 b'b'=0");
}

TEST(walks_dicts_of_other_types) {
  const std::string t = p::put(p::float_vector("0", 4), 1);
  const CheckpointIndex index = read_root(
      p::list(
          {p::ordered_dict({{p::text("a"), t}}) +
               p::dict({{p::text("_metadata"), p::dict({})}}) + "b",
           p::with_entries(
               p::reduce(
                   p::global("collections", "defaultdict"),
                   {p::global("builtins", "list")}),
               {{p::text("b"), p::get(1)}}),
           p::tuple({p::get(1)})}));
  EXPECT_EQ(slot_names(index), "0.a=0 1.b=0 2.0=0");
}

TEST(values_without_tensors_have_no_slots) {
  EXPECT_EQ(read_root(p::integer(5)).slots.size(), 0U);
}

TEST(walks_a_shared_container_once) {
  const CheckpointIndex index = read_root(
      p::dict(
          {{p::text("a"), p::put(p::list({p::float_vector("0", 4)}), 1)},
           {p::text("b"), p::get(1)}}));
  EXPECT_EQ(slot_names(index), "a.0=0");
}

TEST(cycles_end) {
  const CheckpointIndex index = read_root(
      p::put("}", 1) + "(" + p::text("self") + p::get(1) + p::text("w") +
      p::float_vector("0", 4) + "u");
  EXPECT_EQ(slot_names(index), "w=0");
}

TEST(a_deep_tree_costs_no_stack) {
  std::string pickle(100'000, ']');
  pickle += p::float_vector("0", 4) + std::string(100'000, 'a');
  const CheckpointIndex index = read_root(pickle);
  EXPECT_EQ(index.slot_name(0).size(), 2U * 100'000 - 1);
}

TEST(names_of_a_small_file_stay_small) {
  // A key of 1000 bytes nested 10000 times, with a slot at each level.
  std::string pickle = p::put(p::float_vector("0", 4), 1) + "0" +
                       p::put(p::text(std::string(1000, 'k')), 2) + "0";
  for (int i = 0; i < 10'000; ++i) {
    pickle += "](" + p::get(1) + "}(" + p::get(2);
  }
  pickle += "N";
  for (int i = 0; i < 10'000; ++i) {
    pickle += "ue";
  }
  expect_error(
      pickle,
      "m.pt: the slot names add up to more than 7522496 bytes, expected at "
      "most 64 for each byte of 'a/data.pkl' [byte 40]");
}

TEST(lazy_bits_are_kept) {
  const auto with_metadata = [](const std::string& type,
                                const std::string& metadata) {
    return weight(
        v2({p::storage(type, "e", 0),
            p::integer(0),
            p::integers({0}),
            p::integers({1}),
            p::boolean(false),
            p::ordered_dict({}),
            metadata}));
  };
  const auto bit = [](const std::string& name, const std::string& value) {
    return p::dict({{p::text(name), value}});
  };
  for (const std::string& metadata :
       {std::string("}"), std::string("N"), bit("conj", p::boolean(false))}) {
    const TensorRecord tensor =
        read_root(with_metadata("FloatStorage", metadata)).tensors[0];
    EXPECT(!tensor.is_conjugate && !tensor.is_negative);
  }
  EXPECT(
      read_root(
          with_metadata("ComplexFloatStorage", bit("conj", p::boolean(true))))
          .tensors[0]
          .is_conjugate);
  EXPECT(read_root(with_metadata("FloatStorage", bit("neg", p::boolean(true))))
             .tensors[0]
             .is_negative);
  expect_error(
      with_metadata("FloatStorage", bit("conj", p::boolean(true))),
      "m.pt: tensor 'w' has the bit 'conj' and the dtype float32, expected "
      "complex numbers in 'a/data.pkl' [byte 202]");
  expect_error(
      with_metadata("LongStorage", bit("neg", p::boolean(true))),
      "m.pt: tensor 'w' has the bit 'neg' and the dtype int64, expected "
      "floating-point or complex numbers in 'a/data.pkl' [byte 200]");
  expect_error(
      with_metadata("FloatStorage", bit("conj", p::integer(1))),
      "m.pt: tensor 'w' has the conj 1, expected a bool in 'a/data.pkl' [byte "
      "206]");
  expect_error(
      with_metadata("FloatStorage", bit("odd", p::boolean(true))),
      "m.pt: tensor 'w' is a lazy view with the bit 'odd', expected 'conj' or "
      "'neg' in 'a/data.pkl' [byte 201]");
  expect_error(
      with_metadata("FloatStorage", p::integer(1)),
      "m.pt: tensor 'w' has the metadata 1, expected a dict in 'a/data.pkl' "
      "[byte 194]");
}

TEST(refuses_malformed_rebuilds) {
  const std::string storage = p::storage("FloatStorage", "0", 4);
  const auto rebuild = [](const std::string& storage_value,
                          const std::string& offset,
                          const std::string& sizes,
                          const std::string& strides,
                          const std::string& requires_grad) {
    return weight(
        v2({storage_value, offset, sizes, strides, requires_grad, "N"}));
  };
  const std::string zero = p::integer(0);
  const std::string four = p::integers({4});
  const std::string one = p::integers({1});
  const std::string no = p::boolean(false);
  expect_error(
      weight(v2({storage})),
      "m.pt: tensor 'w' is torch._utils._rebuild_tensor_v2 with 1 arguments, "
      "expected 6 or 7 in 'a/data.pkl' [byte 139]");
  expect_error(
      rebuild("N", zero, four, one, no),
      "m.pt: tensor 'w' has the storage None, expected a persistent id in "
      "'a/data.pkl' [byte 107]");
  expect_error(
      rebuild(storage, p::integer(-1), four, one, no),
      "m.pt: tensor 'w' has the storage offset -1, expected an int of 0 or "
      "more in 'a/data.pkl' [byte 160]");
  expect_error(
      rebuild(storage, "F0.5\n", four, one, no),
      "m.pt: tensor 'w' has the storage offset 0.5, expected an int of 0 or "
      "more in 'a/data.pkl' [byte 160]");
  expect_error(
      rebuild(storage, zero, p::integer(4), one, no),
      "m.pt: tensor 'w' has the sizes 4, expected a tuple of ints in "
      "'a/data.pkl' [byte 158]");
  expect_error(
      rebuild(storage, zero, p::integers({-4}), one, no),
      "m.pt: tensor 'w' has the size -4, expected an int of 0 or more in "
      "'a/data.pkl' [byte 160]");
  expect_error(
      rebuild(storage, zero, four, p::integers({-1}), no),
      "m.pt: tensor 'w' has the stride -1, expected an int of 0 or more in "
      "'a/data.pkl' [byte 160]");
  expect_error(
      rebuild(storage, zero, four, p::integers({1, 1}), no),
      "m.pt: tensor 'w' has 1 sizes and 2 strides, expected as many in "
      "'a/data.pkl' [byte 165]");
  expect_error(
      rebuild(storage, zero, four, one, p::integer(1)),
      "m.pt: tensor 'w' has the requires_grad 1, expected a bool in "
      "'a/data.pkl' [byte 164]");
  const std::string many =
      p::tuple(std::vector<std::string>(65, p::integer(1)));
  expect_error(
      rebuild(storage, zero, many, many, no),
      "m.pt: tensor 'w' has 65 sizes, expected at most 64 in 'a/data.pkl' "
      "[byte 800]");
  expect_error(
      weight(
          p::reduce(
              p::global("torch._utils", "_rebuild_parameter"),
              {storage})),
      "m.pt: tensor 'w' is torch._utils._rebuild_parameter with 1 arguments, "
      "expected (data, requires_grad, ...) in 'a/data.pkl' [byte 139]");
  expect_error(
      weight(
          p::reduce(
              p::global("torch._utils", "_rebuild_parameter"),
              {"N", no, "N"})),
      "m.pt: tensor 'w' is a parameter of None, expected a parameter of a "
      "tensor in 'a/data.pkl' [byte 88]");
}

TEST(refuses_tensors_outside_their_storage) {
  const auto view = [](int32_t offset,
                       const std::string& sizes,
                       const std::string& strides) {
    return weight(
        p::tensor(p::storage("FloatStorage", "0", 4), offset, sizes, strides));
  };
  EXPECT_EQ(
      slot_names(read_root(view(3, p::integers({1}), p::integers({9})))),
      "w=0");
  expect_error(
      view(0, p::integers({5}), p::integers({1})),
      "m.pt: tensor 'w' reaches to byte 20 of record 'a/data/0', expected at "
      "most its 16 bytes in 'a/data.pkl' [byte 189]");
  expect_error(
      view(1, p::integers({4}), p::integers({1})),
      "m.pt: tensor 'w' reaches to byte 20 of record 'a/data/0', expected at "
      "most its 16 bytes in 'a/data.pkl' [byte 189]");
  expect_error(
      view(0, p::integers({2}), p::integers({4})),
      "m.pt: tensor 'w' reaches to byte 20 of record 'a/data/0', expected at "
      "most its 16 bytes in 'a/data.pkl' [byte 189]");
  expect_error(
      view(4, p::tuple({}), p::tuple({})),
      "m.pt: tensor 'w' reaches to byte 20 of record 'a/data/0', expected at "
      "most its 16 bytes in 'a/data.pkl' [byte 179]");
  const std::string huge = "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
  expect_error(
      view(0, p::tuple({huge, huge}), p::integers({0, 0})),
      "m.pt: tensor 'w' has sizes whose product overflows, expected less than "
      "2^63 bytes in 'a/data.pkl' [byte 209]");
  expect_error(
      view(0, p::integers({4}), p::tuple({huge})),
      "m.pt: tensor 'w' reaches to byte 2^64 of record 'a/data/0', expected at "
      "most its 16 bytes in 'a/data.pkl' [byte 194]");
  expect_error(
      view(0, p::tuple({huge}), p::integers({0})),
      "m.pt: tensor 'w' has sizes whose product overflows, expected less than "
      "2^63 bytes in 'a/data.pkl' [byte 194]");
}

TEST(refuses_storages_that_contradict_their_record) {
  expect_error(
      weight(p::float_vector("0", 5)),
      "m.pt: tensor 'w' has a storage of 5 float32, expected the 16 bytes of "
      "record 'a/data/0' in 'a/data.pkl' [byte 137]");
  expect_error(
      weight(p::float_vector("0", 3)),
      "m.pt: tensor 'w' has a storage of 3 float32, expected the 16 bytes of "
      "record 'a/data/0' in 'a/data.pkl' [byte 137]");
  expect_error(
      weight(p::float_vector("9", 4)),
      "m.pt: tensor 'w' has the storage '9', expected a record 'a/data/9' in "
      "'a/data.pkl' [byte 137]");
  expect_error(
      p::list(
          {p::float_vector("0", 4),
           p::tensor(
               p::storage("IntStorage", "0", 4),
               0,
               p::integers({4}),
               p::integers({1}))}),
      "m.pt: tensor '1' has a storage of int32 in record 'a/data/0', expected "
      "float32 as before in 'a/data.pkl' [byte 269]");
  expect_error(
      weight(
          p::tensor(
              p::storage("OddStorage", "0", 16),
              0,
              p::integers({4}),
              p::integers({1}))),
      "m.pt: tensor 'w' has the storage type torch.OddStorage, expected a "
      "storage of plain numbers in 'a/data.pkl' [byte 135]");
  expect_error(
      weight(
          p::tensor(
              p::tuple({p::text("module"), "N", "N", "N", "N"}) + "Q",
              0,
              p::integers({4}),
              p::integers({1}))),
      "m.pt: tensor 'w' has the persistent id ('module', None, None, None, "
      "None), expected ('storage', type, key, location, count) in 'a/data.pkl' "
      "[byte 101]");
  expect_error(
      weight(
          p::tensor(
              p::storage("FloatStorage", "0", -1),
              0,
              p::integers({4}),
              p::integers({1}))),
      "m.pt: tensor 'w' has the storage size -1, expected an int of 0 or more "
      "in 'a/data.pkl' [byte 137]");
}

TEST(refuses_a_key_set_twice) {
  const std::string t = p::put(p::float_vector("0", 4), 1);
  const auto twice = [&](const std::string& first, const std::string& second) {
    return p::dict({{first, t}, {second, p::get(1)}});
  };
  expect_error(
      twice(p::text("a"), p::text("a")),
      "m.pt: the dict '' has the key 'a' twice, expected distinct keys in "
      "'a/data.pkl' [byte 40]");
  expect_error(
      twice(p::integer(1), p::boolean(true)),
      "m.pt: the dict '' has the key '1' twice, expected distinct keys in "
      "'a/data.pkl' [byte 40]");
  expect_error(
      twice(p::integer(1), "F1.0\n"),
      "m.pt: the dict '' has the key '1' twice, expected distinct keys in "
      "'a/data.pkl' [byte 40]");
  expect_error(
      twice("N", "N"),
      "m.pt: the dict '' has the key 'None' twice, expected distinct keys in "
      "'a/data.pkl' [byte 40]");
  EXPECT_EQ(
      slot_names(read_root(twice(p::integer(1), p::text("1")))),
      "1=0 1=0");
  p::Entries many;
  for (int i = 0; i < 20; ++i) {
    many.emplace_back(p::text("k" + std::to_string(i % 19)), "N");
  }
  expect_error(
      p::dict(many),
      "m.pt: the dict '' has the key 'k0' twice, expected distinct keys in "
      "'a/data.pkl' [byte 40]");
}

TEST(refuses_a_key_that_is_no_text) {
  expect_error(
      p::dict({{p::text("a\xff"), p::float_vector("0", 4)}}),
      "m.pt: the key 'a\\xff' in '' is not UTF-8, expected a string in "
      "'a/data.pkl' [byte 40]");
}

TEST(refuses_a_broken_pickle) {
  expect_error(
      "h\x07",
      "m.pt: pickle opcode 0x68 (BINGET) asks for memo 7, expected one of the "
      "0 stored so far in 'a/data.pkl' [byte 42]");
}

TEST(refuses_compressed_records) {
  auto records = records_with(weight(p::float_vector("0", 4)));
  // One that no tensor needs is no obstacle.
  records[3].method = 8;
  EXPECT_EQ(slot_names(read(records)), "w=0");
  records[2].method = 8;
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: record 'a/data/0' of tensor 'w' is compressed (method 8), "
      "expected stored [byte 239]",
      read(records));
  records[0].method = 8;
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: record 'a/data.pkl' is compressed (method 8), expected stored "
      "[byte 0]",
      read(records));
}

TEST(refuses_other_byte_orders_and_versions) {
  auto records = records_with(weight(p::float_vector("0", 4)));
  records[1].data = "big";
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: was saved on a big-endian machine ('a/byteorder' is 'big'), "
      "expected little-endian [byte 233]",
      read(records));
  records[1].data = "middle";
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: record 'a/byteorder' is 'middle', expected 'little' or 'big' "
      "[byte 233]",
      read(records));
  records[1].data = "little";
  records[5].data = "11";
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: record 'a/version' is '11', expected a file format version of at "
      "most 10 [byte 416]",
      read(records));
  records[5].data = "x";
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: record 'a/version' is 'x', expected a version number [byte 416]",
      read(records));
  records[1].name = "a/other";
  records[5].name = "a/another";
  EXPECT_EQ(slot_names(read(records)), "w=0");
}

TEST(refuses_other_archives) {
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: is a zip file without records, expected a torch.save zip file",
      read({}));
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: is a zip file without 'x/data.pkl', expected a torch.save zip "
      "file",
      read({{"x", "y"}}));
}

}  // namespace
}  // namespace ckpt_streamer::format
