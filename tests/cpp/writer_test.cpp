#include "write/file_writer.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/crc32.h"
#include "base/error.h"
#include "format/safetensors.h"
#include "format/text.h"
#include "format/torch_zip.h"
#include "format/zip_directory.h"
#include "memory_sink.h"
#include "memory_source.h"
#include "show_values.h"
#include "test_macros.h"
#include "write/checkpoint_writer.h"

namespace ckpt_streamer::write {
namespace {

using format::CheckpointIndex;
using format::DType;
using format::TensorRecord;
using testing::build_zip;
using testing::MemorySource;
using testing::show_values;
using testing::SparseFile;
namespace p = testing::pickle;

struct Shape {
  DType dtype;
  std::vector<int64_t> sizes;
};

// Tensors of storages of their own.
CheckpointIndex index_of(const std::vector<Shape>& shapes) {
  CheckpointIndex index;
  for (const Shape& shape : shapes) {
    TensorRecord tensor;
    tensor.dtype = shape.dtype;
    tensor.storage_index = static_cast<uint32_t>(index.storages.size());
    tensor.dim_count = static_cast<uint8_t>(shape.sizes.size());
    tensor.dims_begin = index.dims.size();
    index.dims.insert(index.dims.end(), shape.sizes.begin(), shape.sizes.end());
    index.dims.resize(index.dims.size() + shape.sizes.size());
    int64_t stride = 1;
    for (size_t dim = shape.sizes.size(); dim-- > 0;) {
      index.dims[tensor.dims_begin + shape.sizes.size() + dim] = stride;
      stride *= shape.sizes[dim];
    }
    index.storages.push_back(
        {{0,
          static_cast<uint64_t>(stride) * format::item_size_bytes(shape.dtype)},
         0});
    index.slots.emplace_back().tensor_index =
        static_cast<uint32_t>(index.tensors.size());
    index.tensors.push_back(tensor);
  }
  return index;
}

Plan plan_of(
    const std::vector<Shape>& shapes,
    std::vector<std::string> names,
    const PlanOptions& options) {
  const CheckpointIndex index = index_of(shapes);
  return make_plan("out", index, index.all_slots(), std::move(names), options);
}

PlanOptions options_of(FileFormat format) {
  PlanOptions options;
  options.format = format;
  return options;
}

std::vector<uint64_t> sizes_of(const PlannedFile& file) {
  std::vector<uint64_t> sizes;
  for (const auto& storage : file.index.storages) {
    sizes.push_back(storage.file_range.size_bytes());
  }
  return sizes;
}

// The bytes of storage i are i + 'a', `step` at once, by turns.
std::string write_file(
    FileFormat format,
    const PlannedFile& file,
    size_t step,
    uint64_t* write_count = nullptr) {
  const auto layout = make_layout("out", format, file, Opaque::kError);
  SparseFile sink(layout->size_bytes());
  FileWriter writer(*layout, sizes_of(file), sink);
  const auto sizes = sizes_of(file);
  for (bool is_done = false; !is_done;) {
    is_done = true;
    for (uint32_t i = 0; i < sizes.size(); ++i) {
      const uint64_t left = sizes[i] - writer.written_bytes(i);
      const std::string bytes(
          std::min<uint64_t>(step, left),
          static_cast<char>('a' + i));
      writer.append(i, std::as_bytes(std::span(bytes)));
      is_done = is_done && left <= step;
    }
  }
  writer.finish();
  EXPECT_EQ(sink.end_bytes, layout->size_bytes());
  if (write_count != nullptr) {
    *write_count = sink.write_count;
  }
  std::string bytes(layout->size_bytes(), '\0');
  sink.read(0, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

std::string bytes_of(
    const std::string& file,
    const CheckpointIndex& index,
    size_t slot) {
  const ByteRange range =
      index.file_range(index.tensors[index.slots[slot].tensor_index]);
  return file.substr(range.begin, range.size_bytes());
}

TEST(a_written_safetensors_file_is_read_back) {
  PlanOptions options = options_of(FileFormat::kSafetensors);
  options.metadata = {{"format", "pt"}, {"a\"\\\n\xc3\xa9", "\x01"}};
  const Plan plan = plan_of(
      {{DType::kUInt8, {3}},
       {DType::kBFloat16, {2, 2}},
       {DType::kFloat64, {}},
       {DType::kBFloat16, {0, 7}},
       {DType::kFloat4E2M1FNX2, {2, 3}}},
      {"bytes", "b", "scalar \"\xe2\x82\xac\"", "empty", "packed"},
      options);
  for (const size_t step : {1, 5, 1000}) {
    const std::string file =
        write_file(FileFormat::kSafetensors, plan.files[0], step);
    const MemorySource source(file);
    const CheckpointIndex index = format::read_safetensors(source);
    EXPECT_EQ(
        show_values(index.values),
        "{'scalar \"\xe2\x82\xac\"': T0, 'b': T1, 'empty': T2, 'bytes': T3, "
        "'packed': T4}");
    EXPECT_EQ(bytes_of(file, index, 0), std::string(8, 'c'));
    EXPECT_EQ(bytes_of(file, index, 1), std::string(8, 'b'));
    EXPECT_EQ(bytes_of(file, index, 3), std::string(3, 'a'));
    EXPECT_EQ(bytes_of(file, index, 4), std::string(6, 'e'));
    EXPECT_EQ(index.sizes(index.tensors[4])[1], 3);
    EXPECT_EQ(index.files[0].metadata.size(), 2U);
    EXPECT_EQ(index.files[0].metadata[1].name, options.metadata[1].name);
    EXPECT_EQ(index.files[0].metadata[1].value, "\x01");
    // Each is aligned to its elements.
    for (const format::Slot& slot : index.slots) {
      const TensorRecord& tensor = index.tensors[slot.tensor_index];
      EXPECT_EQ(
          index.file_range(tensor).begin %
              format::item_size_bytes(tensor.dtype),
          0U);
    }
  }
}

TEST(a_written_file_without_tensors_is_read_back) {
  const std::string file = write_file(
      FileFormat::kSafetensors,
      plan_of({}, {}, options_of(FileFormat::kSafetensors)).files[0],
      1);
  EXPECT_EQ(file, testing::little_endian(8, 8) + "{}      ");
  const std::string archive = write_file(
      FileFormat::kTorch,
      plan_of({}, {}, options_of(FileFormat::kTorch)).files[0],
      1);
  const MemorySource source(archive);
  EXPECT_EQ(show_values(format::read_torch_zip(source).values), "{}");
}

TEST(a_written_archive_is_read_back) {
  const Plan plan = plan_of(
      {{DType::kFloat32, {2, 3}},
       {DType::kUInt16, {5}},
       {DType::kInt64, {0}},
       {DType::kFloat8E4M3FN, {}},
       {DType::kComplex32, {2}}},
      {"a", "b", "c", "d", "e"},
      options_of(FileFormat::kTorch));
  for (const size_t step : {1, 7, 1000}) {
    const std::string file =
        write_file(FileFormat::kTorch, plan.files[0], step);
    const MemorySource source(file);
    const CheckpointIndex index = format::read_torch_zip(source);
    EXPECT_EQ(
        show_values(index.values),
        "{'a': T0, 'b': T1, 'c': T2, 'd': T3, 'e': T4}");
    for (size_t i = 0; i < index.tensors.size(); ++i) {
      const TensorRecord& tensor = index.tensors[i];
      const TensorRecord& planned = plan.files[0].index.tensors[i];
      EXPECT(tensor.dtype == planned.dtype);
      EXPECT_EQ(tensor.dim_count, planned.dim_count);
      const auto& storage = index.storages[tensor.storage_index];
      EXPECT_EQ(storage.file_range.begin % 64, 0U);
      const std::string expected(
          storage.file_range.size_bytes(),
          static_cast<char>('a' + i));
      EXPECT_EQ(
          file.substr(storage.file_range.begin, expected.size()),
          expected);
      EXPECT_EQ(*storage.crc32, crc32(std::as_bytes(std::span(expected))));
    }
  }
}

TEST(small_writes_are_joined) {
  uint64_t write_count = 0;
  const std::vector<Shape> shapes(1000, {DType::kFloat32, {8}});
  std::vector<std::string> names;
  for (int i = 0; i < 1000; ++i) {
    names.push_back(std::to_string(i));
  }
  const Plan plan = plan_of(shapes, names, options_of(FileFormat::kTorch));
  const std::string file =
      write_file(FileFormat::kTorch, plan.files[0], 32, &write_count);
  EXPECT_EQ(write_count, 1U);
}

// What only the layout knows, of records that no test can write.
TEST(an_archive_beyond_4_gib_is_read_back) {
  constexpr int64_t kLarge = int64_t{5} << 30;
  const Plan plan = plan_of(
      {{DType::kUInt8, {kLarge}},
       {DType::kUInt8, {3}},
       {DType::kUInt8, {0xFFFFFFFF}}},
      {"large", "far", "edge"},
      options_of(FileFormat::kTorch));
  const auto layout =
      make_layout("out", FileFormat::kTorch, plan.files[0], Opaque::kError);
  SparseFile file(layout->size_bytes());
  const auto put = [&](uint64_t offset, const std::string& text) {
    file.write(offset, std::as_bytes(std::span(text)));
  };
  put(0, layout->head());
  const auto sizes = sizes_of(plan.files[0]);
  for (uint32_t i = 0; i < 3; ++i) {
    const std::string in_front = layout->in_front(i);
    put(layout->offset(i) - in_front.size(), in_front);
    put(layout->offset(i) + sizes[i], layout->behind(i, 7));
  }
  const std::string tail = layout->tail(std::vector<uint32_t>{7, 7, 7});
  put(layout->size_bytes() - tail.size(), tail);
  const auto directory = format::ZipDirectory::read(file);
  EXPECT_EQ(directory.entries().size(), 9U);
  for (uint32_t i = 0; i < 3; ++i) {
    const format::ZipEntry* const entry =
        directory.find("archive/data/" + std::to_string(i));
    EXPECT(entry != nullptr);
    EXPECT_EQ(entry->data_range.begin, layout->offset(i));
    EXPECT_EQ(entry->data_range.size_bytes(), sizes[i]);
  }
}

// A tree that was read, written again and read again.
std::string rewritten(const std::string& root, Opaque opaque = Opaque::kError) {
  const MemorySource source(build_zip(
      {{"a/data.pkl", p::program(root)},
       {"a/byteorder", "little"},
       {"a/data/0", std::string(16, 'x')},
       {"a/data/1", std::string(8, 'y')},
       {"a/version", "3\n"}}));
  const CheckpointIndex index = format::read_torch_zip(source);
  PlanOptions options = options_of(FileFormat::kTorch);
  options.keeps_tree = true;
  std::vector<std::string> names;
  for (size_t i = 0; i < index.slots.size(); ++i) {
    names.push_back(index.slot_name(i));
  }
  const Plan plan =
      make_plan("out", index, index.all_slots(), std::move(names), options);
  const auto layout =
      make_layout("out", FileFormat::kTorch, plan.files[0], opaque);
  SparseFile file(layout->size_bytes());
  FileWriter writer(*layout, sizes_of(plan.files[0]), file);
  for (uint32_t i = 0; i < plan.files[0].index.storages.size(); ++i) {
    const std::string bytes(sizes_of(plan.files[0])[i], 'x');
    writer.append(i, std::as_bytes(std::span(bytes)));
  }
  writer.finish();
  return show_values(format::read_torch_zip(file).values);
}

void expect_same(const std::string& root) {
  const MemorySource source(build_zip(
      {{"a/data.pkl", p::program(root)},
       {"a/byteorder", "little"},
       {"a/data/0", std::string(16, 'x')},
       {"a/data/1", std::string(8, 'y')},
       {"a/version", "3\n"}}));
  EXPECT_EQ(
      rewritten(root),
      show_values(format::read_torch_zip(source).values));
}

TEST(a_tree_of_plain_values_is_written_as_it_was) {
  const std::string tensor = p::float_vector("0", 4);
  expect_same(p::integers({}));
  expect_same(p::list({tensor, p::text("x"), p::integers({1, 2, 3, 4})}));
  expect_same(
      p::dict(
          {{p::text("w"), tensor},
           {p::integers({1}), p::dict({})},
           {p::text("\xe2\x82\xac"), p::list({p::list({})})}}));
  for (const char* const number :
       {"0",
        "255",
        "256",
        "65535",
        "65536",
        "2147483647",
        "2147483648",
        "-1",
        "-2147483648",
        "-2147483649",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "-9223372036854775809",
        "1180591620717411303424",
        "-1180591620717411303424",
        "32768",
        "-32768",
        "-128",
        "-129",
        "18446744073709551615"}) {
    expect_same(std::string("L") + number + "L\n");
  }
}

TEST(a_long_list_is_written_in_batches) {
  std::vector<std::string> items;
  std::vector<std::pair<std::string, std::string>> entries;
  for (int i = 0; i < 2500; ++i) {
    items.push_back(p::integers({i}));
    entries.emplace_back(p::integers({i}), p::text("x"));
  }
  expect_same(p::list(items));
  expect_same(p::dict(entries));
}

TEST(values_that_only_python_can_write_are_refused_or_dropped) {
  const std::string object = p::reduce(p::global("argparse", "Namespace"), {});
  const std::string root = p::dict(
      {{p::text("a"), p::list({object, p::text("x")})},
       {p::text("b"), p::global("os", "system")},
       {p::text("w"), p::float_vector("0", 4)}});
  EXPECT_THROWS(
      CheckpointError,
      "out: the value 'a.0' is a argparse.Namespace, which only Python can "
      "write; expected a plain value, or opaque='drop', to leave such values "
      "out",
      (void)rewritten(root));
  EXPECT_EQ(rewritten(root, Opaque::kDrop), "{'a': [None, 'x'], 'w': T0}");
  EXPECT_THROWS(
      CheckpointError,
      "out: the value 'f' is the function or class os.system, which only "
      "Python can write; expected a plain value, or opaque='drop', to leave "
      "such values out",
      (void)rewritten(p::dict({{p::text("f"), p::global("os", "system")}})));
}

void expect_refused(
    std::vector<std::string> names,
    const std::string& message,
    FileFormat format = FileFormat::kSafetensors,
    DType dtype = DType::kFloat32) {
  const std::vector<Shape> shapes(names.size(), {dtype, {2}});
  EXPECT_THROWS(
      CheckpointError,
      "out: " + message,
      (void)plan_of(shapes, names, options_of(format)));
}

TEST(names_that_cannot_be_written_are_refused) {
  for (const auto format : {FileFormat::kSafetensors, FileFormat::kTorch}) {
    expect_refused(
        {"x", std::string("a\0b", 3)},
        "the name 'a\\x00b' holds a NUL character, expected one without",
        format);
    expect_refused({"\xff"}, "the name '\\xff' is not UTF-8", format);
    expect_refused(
        {"a", "b", "a"},
        "there are two values of the name 'a', expected distinct names",
        format);
  }
  expect_refused(
      {"__metadata__"},
      "a tensor has the name '__metadata__', which safetensors keeps for "
      "itself, expected another");
  PlanOptions options = options_of(FileFormat::kTorch);
  options.metadata = {{"w", ""}};
  EXPECT_THROWS(
      CheckpointError,
      "out: there are two values of the name 'w', expected distinct names",
      (void)plan_of({{DType::kInt8, {1}}}, {"w"}, options));
  options.metadata = {{"m", "\xff"}};
  EXPECT_THROWS(
      CheckpointError,
      "out: the metadata 'm' is not UTF-8",
      (void)plan_of({{DType::kInt8, {1}}}, {"w"}, options));
}

TEST(dtypes_that_the_format_does_not_have_are_refused) {
  expect_refused(
      {"w"},
      "the tensor 'w' is of the dtype complex128, which safetensors does not "
      "have",
      FileFormat::kSafetensors,
      DType::kComplex128);
  (void)plan_of(
      {{DType::kComplex128, {2}}},
      {"w"},
      options_of(FileFormat::kTorch));
}

TEST(kinds_that_are_not_strided_are_refused) {
  CheckpointIndex index = index_of({{DType::kFloat32, {2}}});
  index.tensors[0].kind = format::TensorKind::kSparse;
  EXPECT_THROWS(
      CheckpointError,
      "out: the tensor 'w' is a sparse tensor, expected a strided one",
      (void)make_plan(
          "out",
          index,
          index.all_slots(),
          {"w"},
          options_of(FileFormat::kTorch)));
}

TEST(a_header_that_no_reader_takes_is_refused) {
  const Plan plan = plan_of(
      {{DType::kInt8, {1}}},
      {std::string(100'000'000, 'n')},
      options_of(FileFormat::kSafetensors));
  EXPECT_THROWS(
      CheckpointError,
      "out: the header would be of 100000056 bytes, expected at most "
      "100000000, which is what readers of safetensors take",
      (void)make_layout(
          "out",
          FileFormat::kSafetensors,
          plan.files[0],
          Opaque::kError));
}

// Two views of one storage of 6 floats: all of it, and what `offset` and `size`
// say.
CheckpointIndex tied_index(uint64_t offset, int64_t size) {
  CheckpointIndex index =
      index_of({{DType::kFloat32, {6}}, {DType::kFloat32, {size}}});
  index.tensors[1].storage_index = 0;
  index.tensors[1].storage_offset_elements = offset;
  return index;
}

Plan tied_plan(
    const CheckpointIndex& index,
    FileFormat format,
    Tied tied,
    std::optional<DType> dtype = std::nullopt) {
  PlanOptions options = options_of(format);
  options.tied = tied;
  options.dtype = dtype;
  return make_plan("out", index, index.all_slots(), {"a", "b"}, options);
}

TEST(tied_tensors_stay_tied_in_an_archive) {
  const Plan plan = tied_plan(
      tied_index(2, 3),
      FileFormat::kTorch,
      Tied::kError,
      DType::kBFloat16);
  EXPECT_EQ(plan.storages.size(), 1U);
  EXPECT_EQ(plan.storages[0].size_bytes, 12U);
  EXPECT_EQ(plan.placements[1].offset_elements, 2U);
  EXPECT(plan.placements[1].is_span);
  const std::string file = write_file(FileFormat::kTorch, plan.files[0], 100);
  const MemorySource source(file);
  const CheckpointIndex index = format::read_torch_zip(source);
  EXPECT_EQ(index.storages.size(), 1U);
  EXPECT_EQ(index.tensors[1].storage_offset_elements, 2U);
  EXPECT(index.tensors[1].dtype == DType::kBFloat16);
  // The same view twice is no span: any tensor may be written as it.
  EXPECT(!tied_plan(tied_index(0, 6), FileFormat::kTorch, Tied::kError)
              .placements[0]
              .is_span);
}

TEST(tied_tensors_of_two_dtypes_are_refused) {
  CheckpointIndex index = tied_index(0, 6);
  index.tensors[1].dtype = DType::kInt32;
  EXPECT_THROWS(
      CheckpointError,
      "out: the tensor 'b' of int32 shares memory with the tensor 'a' of "
      "float32, which torch cannot load; expected tied='copy', to write each",
      (void)tied_plan(index, FileFormat::kTorch, Tied::kError));
  EXPECT_EQ(
      tied_plan(index, FileFormat::kTorch, Tied::kCopy).storages.size(),
      2U);
}

TEST(tied_tensors_in_safetensors) {
  EXPECT_THROWS(
      CheckpointError,
      "out: the tensor 'b' shares memory with the tensor 'a', which "
      "safetensors cannot say; expected tied='copy', to write each, or 'once'",
      (void)
          tied_plan(tied_index(0, 6), FileFormat::kSafetensors, Tied::kError));
  for (const Tied tied : {Tied::kError, Tied::kOnce}) {
    EXPECT_THROWS(
        CheckpointError,
        "out: the tensor 'b' shares memory with the tensor 'a', which "
        "safetensors cannot say; expected tied='copy', to write each",
        (void)tied_plan(tied_index(1, 2), FileFormat::kSafetensors, tied));
  }
  EXPECT_EQ(
      tied_plan(tied_index(1, 2), FileFormat::kSafetensors, Tied::kCopy)
          .storages.size(),
      2U);
  const Plan once =
      tied_plan(tied_index(0, 6), FileFormat::kSafetensors, Tied::kOnce);
  EXPECT_EQ(once.storages.size(), 1U);
  EXPECT_EQ(once.placements[1].storage, format::kNoStorage);
  const auto& metadata = once.files[0].index.files[0].metadata;
  EXPECT_EQ(metadata.size(), 1U);
  EXPECT_EQ(metadata[0].name + "=" + metadata[0].value, "b=a");
}

TEST(views_that_do_not_overlap_are_not_tied) {
  CheckpointIndex index = tied_index(3, 3);
  index.dims[0] = 3;  // of the first: [0, 3)
  EXPECT_EQ(
      tied_plan(index, FileFormat::kSafetensors, Tied::kError).storages.size(),
      2U);
  EXPECT_EQ(
      tied_plan(index, FileFormat::kTorch, Tied::kError).storages.size(),
      2U);
}

TEST(shards_are_filled_in_order) {
  PlanOptions options = options_of(FileFormat::kSafetensors);
  options.shard_size_bytes = 10;
  const Plan plan = plan_of(
      {{DType::kInt8, {4}},
       {DType::kInt8, {6}},
       {DType::kInt8, {1}},
       {DType::kInt8, {30}},
       {DType::kInt8, {2}}},
      {"a", "b", "c", "d", "e"},
      options);
  EXPECT_EQ(plan.files.size(), 4U);
  EXPECT_EQ(show_values(plan.files[0].index.values), "{'a': T0, 'b': T1}");
  EXPECT_EQ(show_values(plan.files[1].index.values), "{'c': T0}");
  EXPECT_EQ(show_values(plan.files[2].index.values), "{'d': T0}");
  EXPECT_EQ(show_values(plan.files[3].index.values), "{'e': T0}");
  EXPECT_EQ(
      shard_path("dir.d/model.safetensors", 2, 5),
      "dir.d/model-00002-of-00005.safetensors");
  EXPECT_EQ(shard_path("dir.d/model", 2, 5), "dir.d/model-00002-of-00005");
  EXPECT_EQ(index_path("m.bin"), "m.bin.index.json");
}

TEST(formats_are_named_by_the_path_or_in_words) {
  EXPECT(format_of("a.SafeTensors", {}) == FileFormat::kSafetensors);
  for (const char* const path : {"a.pt", "a.pth", "a.b.BIN", "a.ckpt"}) {
    EXPECT(format_of(path, {}) == FileFormat::kTorch);
  }
  EXPECT(format_of("a.pt", "safetensors") == FileFormat::kSafetensors);
  EXPECT_THROWS(
      CheckpointError,
      "a.npz: the name does not say a format, expected .safetensors, or .pt, "
      ".pth, .bin or .ckpt at its end, or the format by its name",
      (void)format_of("a.npz", {}));
  EXPECT_THROWS(
      CheckpointError,
      "a.pt: the format is 'zip', expected 'safetensors' or 'torch'",
      (void)format_of("a.pt", "zip"));
  EXPECT_THROWS(
      CheckpointError,
      "a.pt: tied is 'x', expected 'error', 'copy' or 'once'",
      (void)tied_of("a.pt", "x"));
  EXPECT_THROWS(
      CheckpointError,
      "a.pt: opaque is 'x', expected 'error' or 'drop'",
      (void)opaque_of("a.pt", "x"));
}

}  // namespace
}  // namespace ckpt_streamer::write
