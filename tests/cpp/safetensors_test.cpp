#include "format/safetensors.h"

#include "base/error.h"
#include "safetensors_file.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::little_endian;
using testing::MemorySource;
using testing::safetensors_entry;
using testing::safetensors_file;

CheckpointIndex read_file(const std::string& file) {
  const MemorySource source(file);
  return read_safetensors(source);
}

CheckpointIndex read(const std::string& header, const std::string& data = "") {
  return read_file(safetensors_file(header, data));
}

void expect_error(
    const std::string& header,
    const std::string& data,
    const std::string& message) {
  EXPECT_THROWS(CheckpointError, "m.pt: " + message, read(header, data));
}

// A header of one tensor 'w' of four bytes, with these fields.
std::string fields(const std::string& text) {
  return "{\"w\":{" + text + "}}";
}

std::string entry(
    const std::string& dtype,
    const std::string& shape,
    const std::string& data_offsets) {
  return "{" + safetensors_entry("w", dtype, shape, data_offsets) + "}";
}

TEST(safetensors_reads_tensors) {
  const std::string header =
      "{\"__metadata__\":{\"format\":\"pt\",\"a\\u0041\":\"\"}," +
      safetensors_entry("b.weight", "F32", "2,3", "8,32") + "," +
      safetensors_entry("a", "I64", "", "0,8") + "," +
      safetensors_entry("empty", "BF16", "0,5", "8,8") + "}  \n\t ";
  const CheckpointIndex index = read(header, std::string(32, 'x'));
  EXPECT_EQ(index.files.size(), 1U);
  EXPECT_EQ(index.files[0].path, "m.pt");
  EXPECT_EQ(index.files[0].metadata.size(), 2U);
  EXPECT_EQ(index.files[0].metadata[0].name, "format");
  EXPECT_EQ(index.files[0].metadata[0].value, "pt");
  EXPECT_EQ(index.files[0].metadata[1].name, "aA");
  EXPECT(index.metadata.empty());
  EXPECT_EQ(index.slots.size(), 3U);
  EXPECT_EQ(index.slot_name(0), "b.weight");
  const TensorRecord& weight = index.tensors[index.slots[0].tensor_index];
  EXPECT(weight.dtype == DType::kFloat32);
  EXPECT(!weight.requires_grad);
  EXPECT_EQ(weight.dim_count, 2U);
  EXPECT_EQ(index.sizes(weight)[0], 2);
  EXPECT_EQ(index.sizes(weight)[1], 3);
  EXPECT_EQ(index.strides(weight)[0], 3);
  EXPECT_EQ(index.strides(weight)[1], 1);
  const uint64_t data_begin = 8 + header.size();
  EXPECT(
      index.file_range(weight) == (ByteRange{data_begin + 8, data_begin + 32}));
  const TensorRecord& scalar = index.tensors[index.slots[1].tensor_index];
  EXPECT_EQ(scalar.dim_count, 0U);
  EXPECT(index.file_range(scalar) == (ByteRange{data_begin, data_begin + 8}));
  const TensorRecord& empty = index.tensors[index.slots[2].tensor_index];
  EXPECT_EQ(index.sizes(empty)[1], 5);
  EXPECT_EQ(index.strides(empty)[0], 5);
  EXPECT(index.file_range(empty).empty());
}

TEST(safetensors_may_be_empty) {
  EXPECT_EQ(read("{}").slots.size(), 0U);
  EXPECT_EQ(read("{\"__metadata__\":null}").files[0].metadata.size(), 0U);
}

TEST(safetensors_has_every_dtype) {
  const struct {
    const char* name;
    DType dtype;
    uint64_t item_bytes;
  } cases[] = {
      {"BOOL", DType::kBool, 1},
      {"U8", DType::kUInt8, 1},
      {"I8", DType::kInt8, 1},
      {"F8_E5M2", DType::kFloat8E5M2, 1},
      {"F8_E4M3", DType::kFloat8E4M3FN, 1},
      {"F8_E8M0", DType::kFloat8E8M0FNU, 1},
      {"F8_E4M3FNUZ", DType::kFloat8E4M3FNUZ, 1},
      {"F8_E5M2FNUZ", DType::kFloat8E5M2FNUZ, 1},
      {"I16", DType::kInt16, 2},
      {"U16", DType::kUInt16, 2},
      {"F16", DType::kFloat16, 2},
      {"BF16", DType::kBFloat16, 2},
      {"I32", DType::kInt32, 4},
      {"U32", DType::kUInt32, 4},
      {"F32", DType::kFloat32, 4},
      {"C64", DType::kComplex64, 8},
      {"F64", DType::kFloat64, 8},
      {"I64", DType::kInt64, 8},
      {"U64", DType::kUInt64, 8}};
  for (const auto& [name, dtype, item_bytes] : cases) {
    const uint64_t size = 3 * item_bytes;
    const CheckpointIndex index = read(
        entry(name, "3", "0," + std::to_string(size)),
        std::string(size, 0));
    EXPECT(index.tensors[0].dtype == dtype);
    EXPECT_EQ(item_size_bytes(dtype), item_bytes);
    EXPECT_EQ(index.file_range(index.tensors[0]).size_bytes(), size);
  }
}

TEST(safetensors_packs_pairs_of_f4) {
  const CheckpointIndex index = read(entry("F4", "3,4", "0,6"), "123456");
  const TensorRecord& tensor = index.tensors[0];
  EXPECT(tensor.dtype == DType::kFloat4E2M1FNX2);
  EXPECT_EQ(index.sizes(tensor)[0], 3);
  EXPECT_EQ(index.sizes(tensor)[1], 2);
  EXPECT_EQ(index.strides(tensor)[0], 2);
  EXPECT_EQ(index.file_range(tensor).size_bytes(), 6U);
  expect_error(
      entry("F4", "3", "0,2"),
      "12",
      "tensor 'w' has 12 bits, expected whole bytes in the header [byte 13]");
  expect_error(
      entry("F4", "2,3", "0,3"),
      "123",
      "tensor 'w' has the dtype F4 and no even last size, expected an even one "
      "for torch's float4_e2m1fn_x2 in the header [byte 13]");
  expect_error(
      entry("F6_E2M3", "4", "0,3"),
      "123",
      "tensor 'w' has the dtype F6_E2M3, which torch does not have; expected "
      "one "
      "that it has in the header [byte 13]");
  expect_error(
      entry("F6_E3M2", "8", "0,6"),
      "123456",
      "tensor 'w' has the dtype F6_E3M2, which torch does not have; expected "
      "one "
      "that it has in the header [byte 13]");
}

TEST(safetensors_refuses_bad_prefixes) {
  const auto expect_file_error = [](const std::string& file,
                                    const std::string& message) {
    EXPECT_THROWS(CheckpointError, message, read_file(file));
  };
  expect_file_error(
      "1234567",
      "m.pt: has 7 bytes, expected at least the 8 that hold the header's size "
      "[byte 0]");
  expect_file_error(
      little_endian(100'000'001, 8) + "{\"",
      "m.pt: has a header of 100000001 bytes, expected at most 100000000 [byte "
      "0]");
  expect_file_error(
      little_endian(~uint64_t{0}, 8) + "{\"",
      "m.pt: has a header of 18446744073709551615 bytes, expected at most "
      "100000000 [byte 0]");
  expect_file_error(
      little_endian(3, 8) + "{}",
      "m.pt: has a header of 3 bytes, expected at most the 2 behind its size "
      "[byte 0]");
  expect_error(
      "",
      "",
      "has a header that begins with nothing, expected '{' (7b) [byte 8]");
  expect_error(
      " {}",
      "",
      "has a header that begins with 20, expected '{' (7b) [byte 8]");
  expect_error(
      "[]",
      "",
      "has a header that begins with 5b, expected '{' (7b) [byte 8]");
}

TEST(safetensors_refuses_bad_json) {
  expect_error(
      "{\"\xff\":1}",
      "",
      "found the byte ff, expected UTF-8 in the header [byte 10]");
  expect_error(
      "{",
      "",
      "found the end, expected a value or '}' in the header [byte 9]");
  expect_error(
      "{}x",
      "",
      "found 'x', expected the end in the header [byte 10]");
  expect_error(
      "{\"w\":[\"F32\",[1],[0,4]]}",
      "1234",
      "found an array, expected an object as the value of tensor 'w' in the "
      "header [byte 13]");
  expect_error(
      entry("F32", "-1", "0,4"),
      "1234",
      "found '-1', expected an integer from 0 to 2^64 - 1 as a size of tensor "
      "'w' in the header [byte 37]");
  expect_error(
      entry("F32", "1", "0,\"4\""),
      "1234",
      "found a string, expected an integer from 0 to 2^64 - 1 as a data offset "
      "of tensor 'w' in the header [byte 58]");
}

TEST(safetensors_refuses_bad_metadata) {
  expect_error(
      R"({"__metadata__":{"a":1}})",
      "",
      "found a number, expected a string as the value of the metadata 'a' in "
      "the header [byte 29]");
  expect_error(
      R"({"__metadata__":"a"})",
      "",
      "found a string, expected an object as __metadata__ in the header [byte "
      "24]");
  expect_error(
      R"({"__metadata__":{},"__metadata__":{}})",
      "",
      "has '__metadata__' twice, expected it once in the header [byte 42]");
  expect_error(
      R"({"__metadata__":{"a":"1","a":"1"}})",
      "",
      "has the metadata 'a' twice, expected distinct names in the header [byte "
      "24]");
}

TEST(safetensors_refuses_bad_fields) {
  expect_error(
      fields(R"("dtype":"F32","data_offsets":[0,4])"),
      "1234",
      "tensor 'w' has no 'shape', expected dtype, shape and data_offsets in "
      "the header [byte 13]");
  expect_error(
      fields(R"("dtype":"F32","shape":[1])"),
      "1234",
      "tensor 'w' has no 'data_offsets', expected dtype, shape and "
      "data_offsets in the header [byte 13]");
  expect_error(
      fields(R"("shape":[1],"data_offsets":[0,4])"),
      "1234",
      "tensor 'w' has no 'dtype', expected dtype, shape and data_offsets in "
      "the header [byte 13]");
  expect_error(
      fields(R"("dtype":"F32","dtype":"F32")"),
      "1234",
      "tensor 'w' has 'dtype' twice, expected it once in the header [byte "
      "13]");
  expect_error(
      fields(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])"),
      "1234",
      "tensor 'w' has 3 data_offsets, expected 2, where it begins and ends in "
      "the header [byte 13]");
  expect_error(
      fields(R"("dtype":"F32","shape":[1],"data_offsets":[0])"),
      "1234",
      "tensor 'w' has 1 data_offsets, expected 2, where it begins and ends in "
      "the header [byte 13]");
  for (const char* const dtype : {"f32", "C128", ""}) {
    expect_error(
        entry(dtype, "1", "0,4"),
        "1234",
        std::string("tensor 'w' has the dtype '") + dtype +
            "', expected one of BOOL, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, "
            "F8_E4M3, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, I16, U16, F16, BF16, "
            "I32, U32, F32, C64, F64, I64, U64 in the header [byte 13]");
  }
}

// As the reference does, for fields that are to come.
TEST(safetensors_passes_over_other_fields) {
  const CheckpointIndex index = read(
      fields(
          R"("x":{"y":[1,"]"]},"dtype":"F32","shape":[1],"x":2,"data_offsets":[0,4])"),
      "1234");
  EXPECT_EQ(index.slot_name(0), "w");
}

TEST(safetensors_names_are_distinct) {
  expect_error(
      "{" + safetensors_entry("w", "U8", "1", "0,1") + "," +
          safetensors_entry("\\u0077", "U8", "1", "1,2") + "}",
      "12",
      "has the tensor 'w' twice, expected distinct names in the header [byte "
      "70]");
}

TEST(safetensors_covers_the_data_without_holes_and_overlaps) {
  expect_error(
      entry("U8", "4", "4,8"),
      "12345678",
      "tensor 'w' begins at byte 4 of the data, expected byte 0, where the "
      "data begins in the header [byte 13]");
  const auto two = [](const std::string& a, const std::string& b) {
    return "{" + safetensors_entry("a", "U8", "2", a) + "," +
           safetensors_entry("b", "U8", "2", b) + "}";
  };
  expect_error(
      two("0,2", "3,5"),
      "12345",
      "tensor 'b' begins at byte 3 of the data, expected byte 2, where 'a' "
      "ends in the header [byte 65]");
  expect_error(
      two("1,3", "0,2"),
      "123",
      "tensor 'a' begins at byte 1 of the data, expected byte 2, where 'b' "
      "ends in the header [byte 13]");
  expect_error(
      two("0,2", "0,2"),
      "12",
      "tensor 'b' begins at byte 0 of the data, expected byte 2, where 'a' "
      "ends in the header [byte 65]");
  const std::string whole = two("2,4", "0,2");
  EXPECT_EQ(read(whole, "1234").slots.size(), 2U);
  const uint64_t end = 8 + whole.size() + 4;
  expect_error(
      whole,
      "12345",
      "the last tensor ends at byte " + std::to_string(end) +
          ", expected byte " + std::to_string(end + 1) +
          ", the file's end [byte " + std::to_string(end) + "]");
  expect_error(
      "{}",
      "x",
      "the last tensor ends at byte 10, expected byte 11, the file's end [byte "
      "10]");
  expect_error(
      whole,
      "123",
      "tensor 'a' ends at byte 4 of the data, expected at most its 3 bytes in "
      "the header [byte 13]");
  expect_error(
      entry("U8", "0", "1,0"),
      "1",
      "tensor 'w' ends at byte 0 of the data, expected at or behind byte 1, "
      "where it begins in the header [byte 13]");
}

TEST(safetensors_sizes_match_the_bytes) {
  expect_error(
      entry("F32", "2", "0,4"),
      "1234",
      "tensor 'w' has 4 bytes, expected the 8 of its shape and dtype F32 in "
      "the header [byte 13]");
  for (const char* const shape :
       {"18446744073709551615,2",
        "18446744073709551615,2,0",
        "2305843009213693952"}) {
    expect_error(
        entry("F32", shape, "0,4"),
        "1234",
        "tensor 'w' has sizes whose product overflows, expected less than 2^64 "
        "bits in the header [byte 13]");
  }
  for (const char* const shape :
       {"0,18446744073709551615", "0,9223372036854775807,2"}) {
    expect_error(
        entry("F32", shape, "0,0"),
        "",
        "tensor 'w' has no element and sizes whose product overflows, expected "
        "less than 2^63 in the header [byte 13]");
  }
  std::string ones = "1";
  for (int i = 1; i < 64; ++i) {
    ones += ",1";
  }
  EXPECT_EQ(read(entry("U8", ones, "0,1"), "x").tensors[0].dim_count, 64U);
  expect_error(
      entry("U8", ones + ",1", "0,1"),
      "x",
      "tensor 'w' has more than 64 dimensions, expected at most as many in the "
      "header [byte 13]");
}

TEST(safetensors_is_told_from_others) {
  const auto is = [](const std::string& file) {
    return is_safetensors(file, file.size());
  };
  EXPECT(is(safetensors_file("{}")));
  EXPECT(is(safetensors_file("{\"a\"", "")));
  EXPECT(is(safetensors_file(" {}")));
  EXPECT(is(little_endian(1'000'000'000'000, 8) + "{\"a"));  // for its error
  EXPECT(!is("{\"a\":1}  "));
  EXPECT(!is("function{\n  return"));
  EXPECT(!is("function  return"));
  EXPECT(!is("12345678{"));
}

}  // namespace
}  // namespace ckpt_streamer::format
