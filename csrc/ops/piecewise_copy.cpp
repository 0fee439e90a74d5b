#include "ops/piecewise_copy.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/copy_ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "ops/tensor_memory.h"
#include "stream/own_reads.h"

namespace ckpt_streamer::ops {
namespace {

// A multiple of all vectors' lengths. torch converts a run of elements in whole
// vectors and what is left at its end one by one; NaNs come out differently
// there for some dtypes (float64 to bfloat16; signalling ones of float16 to
// float32). So runs are cut behind a multiple of this, or where torch does.
constexpr int64_t kVectorElements = 64;

// As in copy_impl(), aten/src/ATen/native/Copy.cpp: where it is both, float16
// and float32 are converted by fbgemm.
bool have_one_dense_layout(
    const at::Tensor& destination,
    const at::Tensor& source) {
  return (destination.is_contiguous() && source.is_contiguous()) ||
         (destination.is_non_overlapping_and_dense() &&
          source.is_non_overlapping_and_dense() &&
          destination.strides() == source.strides());
}

at::TensorIterator iterator_over(
    const at::Tensor& destination,
    const at::Tensor& source) {
  return at::TensorIteratorConfig()
      .add_output(destination)
      .add_const_input(source)
      .resize_outputs(false)
      .check_all_same_dtype(false)
      .build();
}

// The elements at `offset_bytes` behind the operand's first, in rows of the
// iterator: its dimensions are the tensor's, in the order of its memory, and as
// few as possible.
at::Tensor view_of(
    const at::TensorIterator& iterator,
    int operand,
    at::IntArrayRef shape,
    int64_t offset_bytes) {
  const at::Tensor& tensor = iterator.tensor(operand);
  const int64_t item_size = tensor.element_size();
  at::DimVector sizes(shape.rbegin(), shape.rend());
  at::DimVector strides;
  for (size_t dim = shape.size(); dim-- > 0;) {
    strides.push_back(iterator.strides(operand)[dim] / item_size);
  }
  return tensor.as_strided(
      sizes,
      strides,
      tensor.storage_offset() + offset_bytes / item_size);
}

// How many elements at::parallel_for() hands to one thread.
int64_t share_elements(int64_t element_count) {
  constexpr int64_t kGrain = at::internal::GRAIN_SIZE;
  if (element_count <= kGrain || at::in_parallel_region()) {
    return element_count;
  }
  const int64_t threads = std::min<int64_t>(
      at::get_num_threads(),
      at::divup(element_count, kGrain));
  return at::divup(element_count, threads);
}

// A part of the copy that one thread makes at once.
struct Block {
  at::Tensor destination;
  at::Tensor source;
};

class PiecewiseCopy {
 public:
  PiecewiseCopy(stream::WindowStreamer& streamer, bool is_dense)
      : streamer_(streamer),
        is_dense_(is_dense),
        piece_bytes_(static_cast<int64_t>(streamer.piece_bytes())),
        block_bytes_(
            std::clamp(
                piece_bytes_ / (4 * at::get_num_threads()),
                std::min(kSmallestBlockBytes, piece_bytes_),
                kLargestBlockBytes)) {}

  // Splits along the source's largest stride until blocks are left, in the
  // order of its memory.
  void add_in_blocks(const at::Tensor& destination, const at::Tensor& source) {
    const int64_t span_bytes = size_bytes(memory_of(source).span);
    int64_t split = -1;
    int64_t long_dims = 0;
    for (int64_t dim = 0; dim < source.dim(); ++dim) {
      if (source.size(dim) > 1) {
        ++long_dims;
        if (split < 0 || source.stride(dim) > source.stride(split)) {
          split = dim;
        }
      }
    }
    // A lone element looks like a run; two of a dimension with strides do not.
    const int64_t fewest = long_dims == 1 ? 2 : 1;
    if (span_bytes <= block_bytes_ || split < 0 ||
        source.size(split) < 2 * fewest) {
      add({destination, source});
      return;
    }
    const int64_t count = source.size(split);
    const int64_t step_bytes = source.stride(split) * source.element_size();
    const int64_t slice_bytes = span_bytes - (count - 1) * step_bytes;
    int64_t most = std::max(
        (block_bytes_ - slice_bytes) / std::max<int64_t>(step_bytes, 1) + 1,
        fewest);
    if (most >= kVectorElements) {
      most -= most % kVectorElements;
    }
    for (int64_t begin = 0; begin < count;) {
      const int64_t left = count - begin;
      int64_t length = std::min(most, left);
      if (left - length == 1 && fewest == 2) {
        length = length > 2 ? length - 1 : left;
      }
      add_in_blocks(
          destination.narrow(split, begin, length),
          source.narrow(split, begin, length));
      begin += length;
    }
  }

  // Copies the elements again at which each thread's share of the whole would
  // have ended.
  void add_share_ends(const at::TensorIterator& whole) {
    const int64_t count = whole.numel();
    const int64_t share = share_elements(count);
    if (share == count || !whole.has_contiguous_first_dim()) {
      return;
    }
    const int64_t row = whole.shape()[0];
    for (int64_t end = share; end < count; end += share) {
      const int64_t row_begin = end / row * row;
      if (end == row_begin) {
        continue;
      }
      add_end_of_run(whole, std::max(row_begin, end - share), end);
      if (row_begin + row <= std::min(end + share, count)) {
        add_end_of_run(whole, end, row_begin + row);
      }
    }
  }

  // Makes what was added live and copies it.
  void flush() {
    if (blocks_.empty()) {
      return;
    }
    streamer_.enter_piece(piece_);
    // One thread a block. Two at least, or a lone one is not in a parallel
    // region, and is cut into shares of its own. TensorIterator's region, as in
    // OtherWriters.
    const auto block_count = static_cast<int64_t>(blocks_.size());
    at::Tensor indices(
        at::detail::empty_cpu({std::max<int64_t>(block_count, 2)}, at::kByte));
    const char* const first = static_cast<char*>(indices.data_ptr());
    at::TensorIterator region = at::TensorIterator::nullary_op(indices);
    region.for_each(
        [&](char** data, const int64_t*, int64_t count) {
          const int64_t begin = data[0] - first;
          const int64_t end = std::min(begin + count, block_count);
          for (int64_t i = begin; i < end; ++i) {
            copy(blocks_[static_cast<size_t>(i)]);
          }
        },
        /*grain_size=*/1);
    blocks_.clear();
    piece_ = {};
  }

 private:
  // Enough work to outweigh making a block, and few enough to share out evenly.
  static constexpr int64_t kSmallestBlockBytes = int64_t{256} * 1024;
  static constexpr int64_t kLargestBlockBytes = int64_t{4} * 1024 * 1024;

  static int64_t size_bytes(const ByteRange& range) {
    return static_cast<int64_t>(range.size_bytes());
  }

  void add(Block block) {
    const ByteRange span = memory_of(block.source).span;
    if (size_bytes(hull_of(piece_, span)) > piece_bytes_) {
      flush();
    }
    piece_ = hull_of(piece_, span);
    if (!is_dense_) {
      // A block can be dense where the whole is not: another number of
      // dimensions keeps it away from fbgemm.
      block.destination = block.destination.unsqueeze(0);
    }
    blocks_.push_back(std::move(block));
  }

  // Of elements [begin, end) in the iterator's order, in one of its rows.
  void add_end_of_run(
      const at::TensorIterator& whole,
      int64_t begin,
      int64_t end) {
    const int64_t vectors = (end - begin) / kVectorElements;
    const int64_t first =
        begin + std::max<int64_t>(vectors - 1, 0) * kVectorElements;
    std::array<int64_t, 2> offsets_bytes{};
    int64_t index = first;
    for (size_t dim = 0; dim < whole.shape().size(); ++dim) {
      const int64_t at = index % whole.shape()[dim];
      index /= whole.shape()[dim];
      for (const int operand : {0, 1}) {
        offsets_bytes[static_cast<size_t>(operand)] +=
            at * whole.strides(operand)[dim];
      }
    }
    const int64_t length = end - first;
    add(
        {view_of(whole, 0, length, offsets_bytes[0]),
         view_of(whole, 1, length, offsets_bytes[1])});
  }

  static void copy(Block& block) {
    at::_ops::copy_::redispatch(
        c10::DispatchKeySet(c10::DispatchKey::CPU),
        block.destination,
        block.source,
        /*non_blocking=*/false);
  }

  stream::WindowStreamer& streamer_;
  const bool is_dense_;
  const int64_t piece_bytes_;
  const int64_t block_bytes_;
  std::vector<Block> blocks_;
  ByteRange piece_;  // around the blocks' sources
};

}  // namespace

bool is_plain(const at::Tensor& tensor) {
  // As TensorImpl's constructor makes them.
  static const c10::DispatchKeySet plain =
      c10::DispatchKeySet{
          c10::DispatchKey::CPU,
          c10::DispatchKey::ADInplaceOrView} |
      c10::getAutocastRelatedKeySetFromBackend(c10::BackendComponent::CPUBit) |
      c10::getAutogradRelatedKeySetFromBackend(c10::BackendComponent::CPUBit);
  return tensor.defined() &&
         (tensor.key_set().raw_repr() & ~plain.raw_repr()) == 0 &&
         tensor.layout() == at::kStrided && tensor.has_storage();
}

void copy_in_pieces(
    const at::Tensor& destination,
    const at::Tensor& source,
    stream::WindowStreamer& streamer) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const stream::OwnReads own_reads;
  const bool is_dense = have_one_dense_layout(destination, source);
  const at::TensorIterator whole = iterator_over(destination, source);
  PiecewiseCopy copy(streamer, is_dense);
  copy.add_in_blocks(
      view_of(whole, 0, whole.shape(), 0),
      view_of(whole, 1, whole.shape(), 0));
  copy.flush();
  copy.add_share_ends(whole);
  copy.flush();
  streamer.enter_piece({});
}

}  // namespace ckpt_streamer::ops
