#include "format/tensor_rebuild.h"

#include <string>
#include <vector>

#include "base/error.h"
#include "format/torch_zip.h"
#include "memory_opener.h"
#include "memory_source.h"
#include "show_values.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::build_zip;
using testing::MemorySource;
using testing::show_values;
namespace p = testing::pickle;

// Storages: 'f' of 4 floats, 'i' of 2 int64, 'n' of 3 int32, 'q' of 4 qint8,
// 'p' of 2 bytes, 'd' of 2 doubles.
CheckpointIndex read(const std::string& root) {
  const MemorySource source(build_zip(
      {{"a/data.pkl", p::program(root)},
       {"a/data/f", std::string(16, 'f')},
       {"a/data/i", std::string(16, 'i')},
       {"a/data/n", std::string(12, 'n')},
       {"a/data/q", std::string(4, 'q')},
       {"a/data/p", std::string(2, 'p')},
       {"a/data/d", std::string(16, 'd')}}));
  return read_torch_zip(source);
}

// Of 'w', in front of the byte that is not of interest.
std::string error(const std::string& tensor) {
  try {
    (void)read(p::dict({{p::text("w"), tensor}}));
  } catch (const CheckpointError& found) {
    const std::string text = found.what();
    const std::string begin = "m.pt: tensor 'w' ";
    const std::string end = " in 'a/data.pkl' [byte ";
    EXPECT(text.starts_with(begin));
    EXPECT(text.find(end) != std::string::npos);
    return text.substr(begin.size(), text.find(end) - begin.size());
  }
  return "no error";
}

std::string utils(
    const std::string& name,
    const std::vector<std::string>& args) {
  return p::reduce(p::global("torch._utils", name), args);
}

std::string vector(
    const std::string& type,
    const std::string& key,
    int32_t count) {
  return p::tensor(
      p::storage(type, key, count),
      0,
      p::integers({count}),
      p::integers({1}));
}

std::string matrix(
    const std::string& type,
    const std::string& key,
    int32_t rows,
    int32_t columns) {
  return p::tensor(
      p::storage(type, key, rows * columns),
      0,
      p::integers({rows, columns}),
      p::integers({columns, 1}));
}

std::string layout(const std::string& name) {
  return p::reduce(
      p::global("torch.serialization", "_get_layout"),
      {p::text(name)});
}

std::string floats() {
  return vector("FloatStorage", "f", 4);
}
std::string longs() {
  return vector("LongStorage", "i", 2);
}

const std::string kFalse = p::boolean(false);
const std::string kTrue = p::boolean(true);

std::string quantized(
    const std::string& storage,
    const std::string& quantizer,
    int32_t count = 4,
    const std::string& requires_grad = kFalse) {
  return utils(
      "_rebuild_qtensor",
      {storage,
       p::integer(0),
       p::integers({count}),
       p::integers({1}),
       quantizer,
       requires_grad,
       p::ordered_dict({})});
}

std::string per_tensor() {
  return p::tuple(
      {p::global("torch", "per_tensor_affine"), "F0.5\n", p::integer(3)});
}

std::string per_channel(
    const std::string& scales,
    const std::string& zero_points,
    int32_t axis) {
  return p::tuple(
      {p::global("torch", "per_channel_affine"),
       scales,
       zero_points,
       p::integer(axis)});
}

TEST(quantized_tensors_have_a_scale_and_a_zero_point) {
  const CheckpointIndex index =
      read(quantized(p::storage("QInt8Storage", "q", 4), per_tensor()));
  const TensorRecord& tensor = index.tensors[0];
  EXPECT(tensor.kind == TensorKind::kQuantized);
  EXPECT(tensor.dtype == DType::kQInt8);
  EXPECT_EQ(index.quantized[tensor.detail_index].scale, 0.5);
  EXPECT_EQ(index.quantized[tensor.detail_index].zero_point, 3);
  EXPECT_EQ(index.file_range(tensor).size_bytes(), 4U);
}

TEST(quantized_tensors_have_scales_for_channels) {
  const CheckpointIndex index = read(quantized(
      p::storage("QUInt8Storage", "p", 2),
      per_channel(vector("DoubleStorage", "d", 2), longs(), 0),
      2));
  const TensorRecord& tensor = index.tensors[index.slots[0].tensor_index];
  const QuantizedRecord& record = index.quantized[tensor.detail_index];
  EXPECT(index.tensors[record.scales].dtype == DType::kFloat64);
  EXPECT(index.tensors[record.zero_points].dtype == DType::kInt64);
  EXPECT_EQ(record.axis, 0U);
  EXPECT_EQ(index.slots.size(), 1U);
}

TEST(elements_that_share_a_byte_are_counted_so) {
  const auto packed = [](const std::string& type, int32_t count) {
    return quantized(p::storage(type, "p", 2), per_tensor(), count);
  };
  const CheckpointIndex index = read(packed("QUInt4x2Storage", 3));
  EXPECT_EQ(index.file_range(index.tensors[0]).size_bytes(), 2U);
  EXPECT_EQ(error(packed("QUInt4x2Storage", 4)), "no error");
  EXPECT_EQ(error(packed("QUInt2x4Storage", 8)), "no error");
  EXPECT_EQ(
      error(packed("QUInt4x2Storage", 5)),
      "reaches to byte 3 of record 'a/data/p', expected at most its 2 bytes");
  EXPECT_EQ(
      error(packed("QUInt2x4Storage", 9)),
      "reaches to byte 3 of record 'a/data/p', expected at most its 2 bytes");
}

TEST(refuses_malformed_quantizers) {
  const std::string storage = p::storage("QInt8Storage", "q", 4);
  EXPECT_EQ(
      error(quantized(p::storage("FloatStorage", "f", 4), per_tensor())),
      "is quantized and has a storage of float32, expected one of a quantized "
      "dtype");
  EXPECT_EQ(
      error(quantized(storage, per_tensor(), 4, kTrue)),
      "requires a gradient and has the dtype qint8, expected floating-point or "
      "complex numbers");
  EXPECT_EQ(
      error(quantized(storage, per_tensor(), 5)),
      "reaches to byte 5 of record 'a/data/q', expected at most its 4 bytes");
  EXPECT_EQ(
      error(quantized(storage, p::integer(1))),
      "has the quantizer 1, expected (per_tensor_affine, scale, zero_point) or "
      "(per_channel_affine, scales, zero_points, axis)");
  EXPECT_EQ(
      error(quantized(
          storage,
          p::tuple(
              {p::global("torch", "per_tensor_affine"), "N", p::integer(3)}))),
      "has the scale None and the zero point 3, expected a float and an int");
  EXPECT_EQ(
      error(quantized(storage, per_channel(p::list({}), longs(), 0), 2)),
      "has the scales <object>, expected a strided tensor");
  EXPECT_EQ(
      error(quantized(storage, per_channel(longs(), longs(), 1), 2)),
      "has the axis 1, expected one of its 1 dimensions");
  EXPECT_EQ(
      error(quantized(storage, per_channel(longs(), longs(), 0), 3)),
      "has scales or zero points of another shape than its axis, expected one "
      "dimension of 3");
  EXPECT_EQ(
      error(utils("_rebuild_qtensor", {storage})),
      "is torch._utils._rebuild_qtensor with 1 arguments, expected 7");
}

TEST(sparse_tensors_are_indices_and_values) {
  const std::string indices = matrix("LongStorage", "i", 1, 2);
  const std::string values = p::tensor(
      p::storage("FloatStorage", "f", 4),
      2,
      p::integers({2}),
      p::integers({1}));
  const CheckpointIndex index = read(utils(
      "_rebuild_sparse_tensor",
      {layout("torch.sparse_coo"),
       p::tuple({indices, values, p::integers({9}), kTrue})}));
  EXPECT_EQ(index.slots.size(), 1U);
  const TensorRecord& tensor = index.tensors[index.slots[0].tensor_index];
  const SparseRecord& record = index.sparse[tensor.detail_index];
  EXPECT(tensor.kind == TensorKind::kSparse);
  EXPECT(tensor.dtype == DType::kFloat32);
  EXPECT_EQ(index.sizes(tensor)[0], 9);
  EXPECT(record.layout == SparseLayout::kCoo);
  EXPECT(record.is_coalesced == std::optional(true));
  EXPECT_EQ(record.plain_indices, kNoTensor);
  // From the indices to the end of the values.
  const ByteRange range = index.file_range(tensor);
  EXPECT_EQ(range.begin, index.file_range(index.tensors[record.values]).begin);
  EXPECT_EQ(range.end, index.file_range(index.tensors[record.indices]).end);
}

TEST(sparse_tensors_of_every_layout_and_maker) {
  const std::pair<const char*, SparseLayout> layouts[] = {
      {"torch.sparse_csr", SparseLayout::kCsr},
      {"torch.sparse_csc", SparseLayout::kCsc},
      {"torch.sparse_bsr", SparseLayout::kBsr},
      {"torch.sparse_bsc", SparseLayout::kBsc}};
  for (const auto& [name, expected] : layouts) {
    const CheckpointIndex index = read(utils(
        "_rebuild_sparse_tensor",
        {layout(name),
         p::tuple({longs(), longs(), floats(), p::integers({2, 2})})}));
    EXPECT(index.sparse[0].layout == expected);
    EXPECT(index.sparse[0].plain_indices != kNoTensor);
  }
  // torch 1.8 to 1.12, and before torch 2.1.
  EXPECT_EQ(
      error(utils(
          "_rebuild_sparse_csr_tensor",
          {layout("torch.sparse_csr"),
           p::tuple({longs(), longs(), floats(), p::integers({2, 2})})})),
      "no error");
  const CheckpointIndex old = read(utils(
      "_rebuild_sparse_tensor",
      {layout("torch.sparse_coo"),
       p::tuple({longs(), floats(), p::integers({9})})}));
  EXPECT(old.sparse[0].is_coalesced == std::nullopt);
  // TorchScript's.
  const CheckpointIndex script = read(utils(
      "_rebuild_sparse_tensor",
      {p::integer(1), p::integers({9}), kTrue, longs(), floats()}));
  EXPECT(script.tensors[script.slots[0].tensor_index].requires_grad);
  EXPECT_EQ(
      error(utils(
          "_rebuild_sparse_tensor",
          {p::integer(2),
           p::integers({9}),
           kFalse,
           longs(),
           longs(),
           floats()})),
      "no error");
}

TEST(refuses_malformed_sparse_tensors) {
  const auto coo = [](const std::vector<std::string>& data) {
    return utils(
        "_rebuild_sparse_tensor",
        {layout("torch.sparse_coo"), p::tuple(data)});
  };
  const std::string nine = p::integers({9});
  EXPECT_EQ(
      error(utils("_rebuild_sparse_tensor", {floats()})),
      "is torch._utils._rebuild_sparse_tensor with 1 arguments, expected 2 or "
      "6");
  EXPECT_EQ(
      error(utils(
          "_rebuild_sparse_tensor",
          {layout("torch.strided"), p::tuple({})})),
      "is sparse and has the layout 'torch.strided', expected sparse_coo, "
      "sparse_csr, sparse_csc, sparse_bsr or sparse_bsc");
  EXPECT_EQ(
      error(coo({longs()})),
      "has the sparse data (...) of 1 parts, expected indices, values and "
      "sizes");
  EXPECT_EQ(
      error(coo({floats(), floats(), nine, kFalse})),
      "has indices of float32, expected int64 or int32");
  EXPECT_EQ(
      error(coo({"N", floats(), nine, kFalse})),
      "has the indices None, expected a strided tensor");
  EXPECT_EQ(
      error(coo({longs(), floats(), nine, p::integer(2)})),
      "has the is_coalesced 2, expected a bool");
  const std::string huge = "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
  EXPECT_EQ(
      error(coo({longs(), floats(), p::tuple({huge, huge}), kFalse})),
      "has sizes whose product overflows, expected less than 2^63 bytes");
  // Of itself, by way of the memo: no end of components.
  EXPECT_EQ(
      error(coo({coo({longs(), floats(), nine}), floats(), nine})),
      "has the indices <torch._utils._rebuild_sparse_tensor object>, expected "
      "a strided tensor");
}

TEST(nested_tensors_are_a_buffer_and_its_parts) {
  const auto nested = [](const std::string& sizes, const std::string& offsets) {
    return utils("_rebuild_nested_tensor", {floats(), sizes, sizes, offsets});
  };
  const CheckpointIndex index =
      read(nested(matrix("LongStorage", "i", 2, 1), longs()));
  const TensorRecord& tensor = index.tensors[index.slots[0].tensor_index];
  EXPECT(tensor.kind == TensorKind::kNested);
  EXPECT(!index.file_range(tensor).empty());
  EXPECT_EQ(
      error(nested(longs(), longs())),
      "is nested, of sizes, strides and offsets that do not fit each other; "
      "expected two matrices and a vector of as many rows");
  EXPECT_EQ(
      error(nested(
          matrix("IntStorage", "n", 3, 1),
          vector("IntStorage", "n", 3))),
      "is nested, with sizes of int32, expected int64");
}

TEST(meta_tensors_have_no_bytes) {
  const auto meta = [](const std::string& sizes, const std::string& strides) {
    return utils(
        "_rebuild_meta_tensor_no_storage",
        {p::global("torch", "bfloat16"), sizes, strides, kTrue});
  };
  const CheckpointIndex index =
      read(meta(p::integers({1 << 30, 4}), p::integers({4, 1})));
  EXPECT(index.tensors[0].kind == TensorKind::kMeta);
  EXPECT(index.tensors[0].requires_grad);
  EXPECT(index.file_range(index.tensors[0]).empty());
  EXPECT_EQ(index.storages.size(), 0U);
  const std::string huge = "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
  EXPECT_EQ(
      error(meta(p::tuple({huge, huge}), p::integers({4, 1}))),
      "has sizes whose product overflows, expected less than 2^63 bytes");
  EXPECT_EQ(
      error(meta(p::integers({3, 3}), p::tuple({huge, huge}))),
      "reaches to byte 2^64 of no storage, expected at most its "
      "9223372036854775807 bytes");
}

TEST(uninitialized_parameters_have_no_elements) {
  const CheckpointIndex index = read(
      p::reduce(
          p::global("torch.nn.parameter", "UninitializedParameter"),
          {kTrue}));
  EXPECT(index.tensors[0].kind == TensorKind::kUninitialized);
  EXPECT(index.tensors[0].is_parameter);
  EXPECT_EQ(index.sizes(index.tensors[0])[0], 0);
}

std::string from_type(
    const std::string& function,
    const std::string& type,
    const std::vector<std::string>& args,
    const std::string& state) {
  return p::reduce(
      p::global("torch._tensor", "_rebuild_from_type_v2"),
      {function, type, p::tuple(args), state});
}

std::vector<std::string> float_args() {
  return {
      p::storage("FloatStorage", "f", 4),
      p::integer(0),
      p::integers({4}),
      p::integers({1}),
      kFalse,
      p::ordered_dict({})};
}

TEST(subclasses_are_their_data_and_keep_their_type_and_state) {
  const std::string v2 = p::global("torch._utils", "_rebuild_tensor_v2");
  const CheckpointIndex index = read(
      p::dict(
          {{p::text("w"),
            from_type(
                v2,
                p::global("m", "Mine"),
                float_args(),
                p::dict({{p::text("scale"), longs()}}))}}));
  EXPECT_EQ(show_values(index.values), "{'w': T0<m.Mine>~{'scale': T1}}");
  EXPECT_EQ(index.slot_name(0), "w");
  EXPECT_EQ(index.slot_name(1), "w.scale");
  EXPECT_EQ(
      show_values(read(from_type(
                           v2,
                           p::global("torch", "Tensor"),
                           float_args(),
                           p::dict({{p::text("note"), p::integer(1)}})))
                      .values),
      "T0<torch.Tensor>~{'note': 1}");
  // A parameter of one.
  EXPECT_EQ(
      show_values(read(utils(
                           "_rebuild_parameter_with_state",
                           {from_type(
                                v2,
                                p::global("m", "Mine"),
                                float_args(),
                                p::dict({{p::text("a"), p::integer(1)}})),
                            kTrue,
                            p::ordered_dict({}),
                            p::dict({{p::text("b"), p::integer(2)}})}))
                      .values),
      "T0<m.Mine>{'a': 1}~{'b': 2}");
  EXPECT_EQ(
      error(from_type(v2, p::global("m", "Mine"), {}, "}")),
      "is torch._utils._rebuild_tensor_v2 with 0 arguments, expected 6 or 7");
}

TEST(subclasses_without_data_are_objects) {
  const std::string wrapper =
      p::global("torch._utils", "_rebuild_wrapper_subclass");
  const std::string mine = p::global("m", "Mine");
  const std::string one =
      from_type(wrapper, mine, {mine}, p::dict({{p::text("inner"), floats()}}));
  const CheckpointIndex index = read(p::dict({{p::text("w"), one}}));
  EXPECT_EQ(show_values(index.values), "{'w': m.Mine(m.Mine)~{'inner': T0}}");
  EXPECT_EQ(index.slot_name(0), "w.inner");
  // A parameter of one is an object as well.
  const CheckpointIndex parameter = read(
      p::dict(
          {{p::text("w"),
            utils("_rebuild_parameter", {one, kTrue, p::ordered_dict({})})}}));
  EXPECT_EQ(parameter.slot_name(0), "w.0.inner");
}

TEST(other_rebuilds_are_named) {
  EXPECT_EQ(
      error(utils("_rebuild_odd_tensor", {floats()})),
      "is rebuilt by torch._utils._rebuild_odd_tensor, which is not read; "
      "expected one of the kinds of torch 2.13");
  EXPECT_EQ(
      error(utils("_rebuild_parameter", {p::list({}), kTrue, "N"})),
      "is a parameter of <object>, expected a parameter of a tensor");
  EXPECT_EQ(
      error(utils(
          "_rebuild_parameter",
          {utils("_rebuild_parameter", {floats(), kTrue, "N"}), kTrue, "N"})),
      "is a parameter of <torch._utils._rebuild_parameter object>, expected a "
      "parameter of a tensor");
  EXPECT_EQ(
      error(utils("_rebuild_parameter", {longs(), kTrue, "N"})),
      "requires a gradient and has the dtype int64, expected floating-point or "
      "complex numbers");
}

std::string numpy_dtype(const std::string& name, const std::string& order) {
  return p::reduce(
             p::global("numpy", "dtype"),
             {p::text(name), kFalse, kTrue}) +
         p::tuple(
             {p::integer(3),
              p::text(order),
              "N",
              "N",
              "N",
              p::integer(-1),
              p::integer(-1),
              p::integer(0)}) +
         "b";
}

std::string bytes(const std::string& text) {
  return "C" + std::string(1, static_cast<char>(text.size())) + text;
}

std::string numpy_array(
    const std::string& dtype,
    const std::string& sizes,
    const std::string& data,
    const std::string& is_fortran_order = kFalse) {
  return p::reduce(
             p::global("numpy.core.multiarray", "_reconstruct"),
             {p::global("numpy", "ndarray"), p::integers({0}), bytes("b")}) +
         p::tuple({p::integer(1), sizes, dtype, is_fortran_order, data}) + "b";
}

TEST(numpy_arrays_and_scalars_are_values) {
  const auto values = [](const std::string& root) {
    return show_values(read(root).values);
  };
  EXPECT_EQ(
      values(numpy_array(
          numpy_dtype("u2", "<"),
          p::integers({2, 1}),
          bytes("abcd"))),
      "array(<u2, [2, 1], 'abcd')");
  EXPECT_EQ(
      values(numpy_array(
          numpy_dtype("i1", "|"),
          p::integers({1, 2}),
          p::reduce(
              p::global("_codecs", "encode"),
              {p::text("a\xc3\xbf"), p::text("latin1")}),
          kTrue)),
      "arrayF(|i1, [1, 2], 'a\\xff')");
  EXPECT_EQ(
      values(
          p::reduce(
              p::global("numpy._core.multiarray", "scalar"),
              {numpy_dtype("f4", ">"), bytes("abcd")})),
      "scalar(>f4, [], 'abcd')");
  EXPECT_EQ(
      values(
          p::reduce(
              p::global("numpy._core.numeric", "_frombuffer"),
              {bytes("abcd"),
               numpy_dtype("b1", "|"),
               p::integers({4}),
               p::text("C")})),
      "array(|b1, [4], 'abcd')");
  EXPECT_EQ(
      values(
          numpy_array(numpy_dtype("U1", "<"), p::integers({}), bytes("abcd"))),
      "array(<U1, [], 'abcd')");
  EXPECT_EQ(
      values(
          numpy_array(numpy_dtype("S2", "|"), p::integers({2}), bytes("abcd"))),
      "array(|S2, [2], 'abcd')");
}

// Arrays of objects and dates, and those that contradict themselves.
TEST(other_arrays_are_objects) {
  const auto is_object = [](const std::string& root) {
    const CheckpointIndex index = read(root);
    return index.values.kind(index.values.root()) == NodeKind::kObject;
  };
  const std::string four = p::integers({4});
  EXPECT(is_object(numpy_array(
      numpy_dtype("O8", "|"),
      p::integers({1}),
      p::list({floats()}))));
  EXPECT(is_object(
      numpy_array(numpy_dtype("M8", "<"), p::integers({0}), bytes(""))));
  EXPECT(is_object(numpy_array(numpy_dtype("i3", "<"), four, bytes("abcd"))));
  EXPECT(is_object(numpy_array(numpy_dtype("i2", "<"), four, bytes("abcd"))));
  EXPECT(is_object(numpy_array(numpy_dtype("u1", "?"), four, bytes("abcd"))));
  EXPECT(is_object(numpy_array(numpy_dtype("u1", "|"), "N", bytes("abcd"))));
  const std::string huge = "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
  EXPECT(is_object(numpy_array(
      numpy_dtype("f8", "<"),
      p::tuple({huge, huge}),
      bytes("abcd"))));
  // The tensors in an array of objects are reached.
  const CheckpointIndex index = read(numpy_array(
      numpy_dtype("O8", "|"),
      p::integers({1}),
      p::list({floats()})));
  EXPECT_EQ(index.slot_name(0), "4.0");
}

TEST(tensors_may_be_made_of_arrays) {
  const auto remote = [](const std::string& data) {
    return utils(
        "_rebuild_device_tensor_from_numpy",
        {data, p::global("torch", "bfloat16"), p::text("xla:0"), kTrue});
  };
  const CheckpointIndex index = read(remote(numpy_array(
      numpy_dtype("f4", "<"),
      p::integers({2, 1}),
      bytes("abcdefgh"))));
  const TensorRecord& tensor = index.tensors[0];
  EXPECT(tensor.kind == TensorKind::kArray);
  EXPECT(tensor.dtype == DType::kBFloat16);
  EXPECT(tensor.requires_grad);
  EXPECT(index.arrays[0].dtype == DType::kFloat32);
  EXPECT_EQ(
      index.values.array(index.arrays[0].array).bytes,
      std::string_view("abcdefgh"));
  EXPECT(index.file_range(tensor).empty());
  EXPECT_EQ(
      error(remote(p::list({}))),
      "is made of <object>, expected a numpy array of a plain dtype");
  EXPECT_EQ(
      error(remote(numpy_array(
          numpy_dtype("f4", ">"),
          p::integers({2}),
          bytes("abcdefgh")))),
      "is made of a numpy array of '>f4', expected a dtype and shape that "
      "torch has");
  const auto from_cpu = [](const std::string& dtype) {
    return utils(
        "_rebuild_device_tensor_from_cpu_tensor",
        {floats(), p::global("torch", dtype), p::text("xla:0"), kTrue});
  };
  EXPECT(read(from_cpu("float32")).tensors[1].requires_grad);
  EXPECT_EQ(
      error(from_cpu("bfloat16")),
      "is made of float32 as another device's bfloat16, expected data of its "
      "own dtype");
}

// All side tables move along: files as one list have a dict of names.
TEST(indices_of_several_files_keep_what_tensors_are_made_of) {
  const std::string root = p::dict(
      {{p::text("q"),
        quantized(
            p::storage("QUInt8Storage", "p", 2),
            per_channel(vector("DoubleStorage", "d", 2), longs(), 0),
            2)},
       {p::text("s"),
        utils(
            "_rebuild_sparse_tensor",
            {layout("torch.sparse_coo"),
             p::tuple(
                 {matrix("LongStorage", "i", 1, 2),
                  vector("FloatStorage", "f", 4),
                  p::integers({9}),
                  kTrue})})},
       {p::text("n"),
        utils(
            "_rebuild_nested_tensor",
            {floats(),
             matrix("LongStorage", "i", 2, 1),
             matrix("LongStorage", "i", 2, 1),
             longs()})},
       {p::text("a"),
        utils(
            "_rebuild_device_tensor_from_numpy",
            {numpy_array(numpy_dtype("u1", "|"), p::integers({2}), bytes("xy")),
             p::global("torch", "uint8"),
             p::text("cpu"),
             kFalse})},
       {p::text("m"),
        utils(
            "_rebuild_meta_tensor_no_storage",
            {p::global("torch", "int8"),
             p::integers({3}),
             p::integers({1}),
             kFalse})}});
  const auto one_file = [&](const std::string& path) {
    CheckpointIndex index = read(root);
    index.files = {{path, {}}};
    return index;
  };
  const CheckpointIndex one = one_file("one");
  CheckpointIndex both;
  both.append(one_file("one"));
  both.append(one_file("two"));
  const size_t count = one.slots.size();
  EXPECT_EQ(both.slots.size(), 2 * count);
  EXPECT_EQ(both.values.entries(both.values.root()).size(), 4 * count);
  for (size_t i = 0; i < 2 * count; ++i) {
    EXPECT_EQ(both.slot_name(i), one.slot_name(i % count));
    EXPECT_EQ(both.file_index(both.slots[i].tensor_index), i / count);
    const TensorRecord& found = both.tensors[both.slots[i].tensor_index];
    const TensorRecord& wanted = one.tensors[one.slots[i % count].tensor_index];
    EXPECT(found.kind == wanted.kind);
    EXPECT(both.file_range(found) == one.file_range(wanted));
  }
  EXPECT_EQ(
      both.values.array(both.arrays[1].array).bytes,
      std::string_view("xy"));
  const QuantizedRecord& second = both.quantized[1];
  EXPECT(both.tensors[second.scales].dtype == DType::kFloat64);
  EXPECT_EQ(
      both.storages[both.tensors[second.scales].storage_index].file_index,
      1U);
}

}  // namespace
}  // namespace ckpt_streamer::format
