#include "format/memory_pieces.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

constexpr uint64_t kMiB = 1 << 20;

// Storages and one-dimensional tensors of them.
class Index {
 public:
  uint32_t add_storage(uint64_t begin, uint64_t size_bytes) {
    index.storages.push_back({{begin, begin + size_bytes}});
    return static_cast<uint32_t>(index.storages.size() - 1);
  }
  uint32_t add_tensor(
      uint32_t storage,
      DType dtype,
      uint64_t offset,
      int64_t size,
      int64_t stride = 1) {
    TensorRecord tensor;
    tensor.storage_index = storage;
    tensor.dtype = dtype;
    tensor.storage_offset_elements = offset;
    tensor.dims_begin = index.dims.size();
    tensor.dim_count = 1;
    index.dims.push_back(size);
    index.dims.push_back(stride);
    index.tensors.push_back(tensor);
    return static_cast<uint32_t>(index.tensors.size() - 1);
  }

  CheckpointIndex index;
};

TEST(memory_pieces_of_aligned_storages_are_mapped) {
  Index made;
  const uint32_t storage = made.add_storage(1008, 800);
  const uint32_t tensor = made.add_tensor(storage, DType::kComplex128, 1, 3);
  const MemoryPieces pieces(made.index, 1);
  EXPECT_EQ(pieces.count(), 1U);
  const MemoryPiece piece = pieces.piece_of(tensor);
  EXPECT_EQ(piece.number, 0U);
  EXPECT(!piece.is_copy);
  EXPECT(piece.file_range == (ByteRange{1008, 1808}));
}

TEST(memory_pieces_align_complex_numbers_as_a_whole) {
  for (const auto& [dtype, alignment] :
       {std::pair{DType::kComplex128, 16},
        std::pair{DType::kComplex64, 8},
        std::pair{DType::kFloat64, 8},
        std::pair{DType::kComplex32, 4},
        std::pair{DType::kBFloat16, 2},
        std::pair{DType::kBool, 1}}) {
    for (uint64_t begin = 16; begin < 32; ++begin) {
      Index made;
      (void)made.add_tensor(made.add_storage(begin, 32), dtype, 0, 1);
      EXPECT_EQ(
          MemoryPieces(made.index, 1 << 10).piece_of(0).is_copy,
          begin % static_cast<uint64_t>(alignment) != 0);
    }
  }
}

TEST(memory_pieces_that_one_tensor_cannot_use_in_place_are_copied) {
  Index made;
  const uint32_t aligned = made.add_storage(4, 8);
  const uint32_t storage = made.add_storage(1002, 800);
  const uint32_t other = made.add_tensor(aligned, DType::kFloat32, 0, 1);
  const uint32_t bytes = made.add_tensor(storage, DType::kUInt8, 0, 8);
  const uint32_t floats = made.add_tensor(storage, DType::kFloat32, 0, 2);
  const MemoryPieces pieces(made.index, 800);
  EXPECT_EQ(pieces.count(), 2U);
  EXPECT(!pieces.piece_of(other).is_copy);
  for (const uint32_t tensor : {bytes, floats}) {
    const MemoryPiece piece = pieces.piece_of(tensor);
    EXPECT_EQ(piece.number, 1U);
    EXPECT(piece.is_copy);
    EXPECT(piece.file_range == (ByteRange{1002, 1802}));
  }
}

TEST(memory_pieces_of_a_large_storage_are_its_overlapping_tensors) {
  Index made;
  const uint64_t begin = 1001;
  (void)made.add_storage(0, 1);
  const uint32_t storage = made.add_storage(begin, 4 * kMiB);
  const uint32_t last = made.add_tensor(storage, DType::kFloat32, 5000, 100);
  const uint32_t first = made.add_tensor(storage, DType::kFloat32, 3, 10);
  const uint32_t inside = made.add_tensor(storage, DType::kFloat64, 2, 2);
  const uint32_t beside = made.add_tensor(storage, DType::kFloat32, 16, 4);
  const uint32_t strided =
      made.add_tensor(storage, DType::kFloat32, 1000, 5, 100);
  const uint32_t empty = made.add_tensor(storage, DType::kFloat32, 900, 0);
  const MemoryPieces pieces(made.index, kMiB);
  EXPECT_EQ(pieces.count(), 2U + 4U);
  const auto expect = [&](uint32_t tensor, uint32_t number, ByteRange range) {
    const MemoryPiece piece = pieces.piece_of(tensor);
    EXPECT(piece.is_copy);
    EXPECT_EQ(piece.number, number);
    EXPECT(
        piece.file_range ==
        (ByteRange{begin + range.begin, begin + range.end}));
  };
  // Element 3 is byte 12, and a piece begins at a multiple of 16 bytes.
  expect(first, 2, {0, 52});
  expect(inside, 2, {0, 52});
  expect(beside, 3, {64, 80});
  expect(strided, 4, {4000, 5604});
  expect(last, 5, {20000, 20400});
  expect(empty, 1, {0, 0});
}

TEST(memory_pieces_side_by_side_stay_apart) {
  Index made;
  const uint32_t storage = made.add_storage(1, 4 * kMiB);
  std::vector<uint32_t> tensors;
  for (uint64_t i = 0; i < 1000; ++i) {
    tensors.push_back(made.add_tensor(storage, DType::kFloat32, 5 * i, 5));
  }
  // Inside the second one, but in the block where the third one's piece begins.
  const uint32_t inside = made.add_tensor(storage, DType::kFloat32, 9, 1);
  const MemoryPieces pieces(made.index, kMiB);
  EXPECT_EQ(pieces.count(), 1001U);
  EXPECT_EQ(pieces.piece_of(inside).number, 2U);
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    const MemoryPiece piece = pieces.piece_of(tensors[i]);
    EXPECT_EQ(piece.number, i + 1);
    EXPECT(
        piece.file_range ==
        (ByteRange{1 + round_down(20 * i, 16), 1 + 20 * i + 20}));
  }
}

}  // namespace
}  // namespace ckpt_streamer::format
