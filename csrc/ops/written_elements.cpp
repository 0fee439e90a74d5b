#include "ops/written_elements.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/copy_ops.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "ops/limit_warning.h"
#include "ops/other_writers.h"
#include "ops/tensor_memory.h"
#include "os/residency.h"
#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {
namespace {

// What is converted at once; the source's or the result's, whichever is larger.
constexpr int64_t kPieceBytes = int64_t{4} << 20;

// As in piecewise_copy.cpp: torch converts a run of elements in whole vectors,
// what is left at its end one by one, and NaNs come out differently there for
// some dtypes.
constexpr int64_t kVectorElements = 64;

std::span<const std::byte> bytes_of(const at::Tensor& flat) {
  return {
      static_cast<const std::byte*>(flat.const_data_ptr()),
      static_cast<size_t>(flat.nbytes())};
}

}  // namespace

// Makes parts of one tensor live, where it is larger than the limit.
class WrittenElements::Reader {
 public:
  Reader(const at::Tensor& tensor, uint64_t memory_limit_bytes) {
    const ByteRange span = memory_of(tensor).span;
    if (round_outward(span, os::page_size_bytes()).size_bytes() <=
        memory_limit_bytes) {
      return;
    }
    streamer_ = std::make_unique<stream::WindowStreamer>(
        std::vector<ByteRange>{span},
        memory_limit_bytes,
        other_threads());
    if (!streamer_->owns_part_of(span)) {
      streamer_.reset();
    }
  }

  ~Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // The most to make live at once.
  [[nodiscard]] int64_t piece_bytes() const {
    return streamer_ == nullptr
               ? kPieceBytes
               : std::min(
                     kPieceBytes,
                     static_cast<int64_t>(streamer_->piece_bytes()));
  }

  void enter(const at::Tensor& part) {
    if (streamer_ != nullptr) {
      streamer_->enter_piece(memory_of(part).span);
    }
  }

  void release() {
    if (streamer_ != nullptr) {
      streamer_->release();
    }
  }

  void end() {
    if (streamer_ != nullptr) {
      streamer_->release();
      bool warned = false;
      warn_if_limit_not_held(streamer_->figures(), warned);
    }
  }

 private:
  std::unique_ptr<stream::WindowStreamer> streamer_;
};

// Of a tensor without gaps, which torch converts as one run in the order of its
// memory, a share for each thread: the elements at the shares' ends that do not
// fill a multiple of all vectors.
struct WrittenElements::RunEnds {
  std::vector<std::pair<int64_t, at::Tensor>>
      elements;          // by row-major position
  int64_t position = 0;  // of the next part's first element

  RunEnds(const at::Tensor& tensor, at::ScalarType dtype) {
    const int64_t count = tensor.numel();
    const at::Tensor flat =
        tensor.as_strided({count}, {1}, tensor.storage_offset());
    std::vector<std::pair<int64_t, int64_t>>
        strides;  // here, in row-major order
    int64_t row_major = 1;
    for (int64_t dim = tensor.dim(); dim-- > 0;) {
      if (tensor.size(dim) > 1) {
        strides.emplace_back(tensor.stride(dim), row_major);
      }
      row_major *= tensor.size(dim);
    }
    std::sort(strides.rbegin(), strides.rend());
    constexpr int64_t kGrain = at::internal::GRAIN_SIZE;
    const int64_t shares =
        std::min<int64_t>(at::get_num_threads(), at::divup(count, kGrain));
    const int64_t share = at::divup(count, shares);
    for (int64_t begin = 0; begin < count; begin += share) {
      const int64_t end = std::min(begin + share, count);
      const int64_t left = (end - begin) % kVectorElements;
      const at::Tensor made = flat.narrow(0, end - left, left).to(dtype);
      for (int64_t i = 0; i < left; ++i) {
        int64_t rest = end - left + i;
        int64_t at = 0;
        for (const auto& [here, there] : strides) {
          at += rest / here * there;
          rest %= here;
        }
        elements.emplace_back(at, made.narrow(0, i, 1));
      }
    }
    std::sort(elements.begin(), elements.end(), [](auto& left, auto& right) {
      return left.first < right.first;
    });
  }

  // Of the next part, contiguous. Only NaNs depend on where they are.
  at::Tensor converted(const at::Tensor& part, at::ScalarType dtype) {
    const int64_t count = part.numel();
    const int64_t begin = std::exchange(position, position + count);
    at::Tensor made = part.to(dtype).view({-1});
    if (!part.isnan().any().item<bool>()) {
      return made;
    }
    const at::Tensor flat = part.view({-1});
    constexpr int64_t kGrain = at::internal::GRAIN_SIZE;  // one thread's
    const int64_t whole = count - count % kVectorElements;
    for (int64_t i = 0; i < whole; i += kGrain) {
      const int64_t length = std::min(kGrain, whole - i);
      made.narrow(0, i, length).copy_(flat.narrow(0, i, length));
    }
    if (whole < count) {
      at::Tensor padded = at::zeros({kVectorElements}, flat.options());
      padded.narrow(0, 0, count - whole)
          .copy_(flat.narrow(0, whole, count - whole));
      made.narrow(0, whole, count - whole)
          .copy_(padded.to(dtype).narrow(0, 0, count - whole));
    }
    for (const auto& [at, element] : elements) {
      if (at >= begin && at < begin + count) {
        made.narrow(0, at - begin, 1).copy_(element);
      }
    }
    return made;
  }
};

Conversion& WrittenElements::conversion_to(at::ScalarType dtype) {
  if (dtype_ != dtype) {
    conversion_.emplace(dtype);
    dtype_ = dtype;
  }
  return *conversion_;
}

void WrittenElements::hand_out(
    const at::Tensor& tensor,
    at::ScalarType dtype,
    const TakeBytes& take) {
  if (tensor.numel() == 0) {
    return;
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  Reader reader(tensor, memory_limit_bytes_);
  const bool is_flat = tensor.device().is_cpu() && tensor.is_contiguous() &&
                       !tensor.is_conj() && !tensor.is_neg();
  if (is_flat) {
    hand_out_flat(tensor.view({-1}), dtype, reader, take);
  } else {
    std::optional<RunEnds> ends;
    if (tensor.scalar_type() != dtype && tensor.device().is_cpu() &&
        tensor.numel() * tensor.element_size() > kPieceBytes &&
        tensor.is_non_overlapping_and_dense() && !tensor.is_neg() &&
        tensor.element_size() > 1) {  // no conversion of float8 depends on it
      ends.emplace(tensor, dtype);
    }
    hand_out_strided(
        tensor,
        dtype,
        reader,
        ends.has_value() ? &*ends : nullptr,
        take);
  }
  reader.end();
}

void WrittenElements::hand_out_flat(
    const at::Tensor& flat,
    at::ScalarType dtype,
    Reader& reader,
    const TakeBytes& take) {
  if (flat.scalar_type() != dtype) {
    convert_flat(flat, dtype, reader, take);
    return;
  }
  const int64_t count = flat.numel();
  const int64_t most =
      std::max<int64_t>(reader.piece_bytes() / flat.element_size(), 1);
  for (int64_t begin = 0; begin < count; begin += most) {
    const at::Tensor part =
        flat.narrow(0, begin, std::min(most, count - begin));
    reader.enter(part);
    take(bytes_of(part));
  }
}

// As the whole would be: cut where torch cuts it for its threads, and within
// that into lengths of which each thread has whole vectors.
void WrittenElements::convert_flat(
    const at::Tensor& flat,
    at::ScalarType dtype,
    Reader& reader,
    const TakeBytes& take) {
  const int64_t count = flat.numel();
  Conversion& conversion = conversion_to(dtype);
  const ContiguousElements elements{
      flat.const_data_ptr(),
      flat.scalar_type(),
      flat.sizes(),
      count,
      false};
  const int64_t item_bytes = std::max<int64_t>(
      flat.element_size(),
      static_cast<int64_t>(c10::elementSize(dtype)));
  const int64_t most = reader.piece_bytes() / item_bytes;
  if (count <= most && conversion.takes(elements)) {
    reader.enter(flat);
    take(bytes_of(conversion.of_elements(elements)));
    return;
  }
  if (!buffer_.defined()) {
    buffer_ = at::empty({kPieceBytes}, at::kByte);
  }
  const at::Tensor made = buffer_.view(dtype);
  constexpr int64_t kGrain = at::internal::GRAIN_SIZE;
  const int64_t threads = at::get_num_threads();
  const int64_t shares =
      count <= kGrain ? 1 : std::min(threads, at::divup(count, kGrain));
  const int64_t share = at::divup(count, shares);
  const int64_t step = kVectorElements * threads;
  const int64_t piece = std::max(most - most % step, step);
  for (int64_t share_begin = 0; share_begin < count; share_begin += share) {
    const int64_t share_end = std::min(share_begin + share, count);
    for (int64_t begin = share_begin; begin < share_end;) {
      int64_t length = std::min(piece, share_end - begin);
      if (length > kGrain) {
        length -= length % step;
      }
      at::Tensor destination = made.narrow(0, 0, length);
      const at::Tensor source = flat.narrow(0, begin, length);
      reader.enter(source);
      at::_ops::copy_::redispatch(
          c10::DispatchKeySet(c10::DispatchKey::CPU),
          destination,
          source,
          /*non_blocking=*/false);
      take(bytes_of(destination));
      begin += length;
    }
  }
}

void WrittenElements::hand_out_strided(
    const at::Tensor& tensor,
    at::ScalarType dtype,
    Reader& reader,
    RunEnds* ends,
    const TakeBytes& take) {
  const int64_t bytes = tensor.numel() * tensor.element_size();
  int64_t dim = 0;
  while (dim < tensor.dim() && tensor.size(dim) == 1) {
    ++dim;
  }
  if (bytes <= kPieceBytes || dim == tensor.dim()) {
    at::Tensor part = tensor.to(at::kCPU).resolve_conj().resolve_neg();
    if (ends != nullptr) {
      part = ends->converted(part.contiguous(), dtype);
    } else if (part.scalar_type() != dtype) {
      part = part.to(dtype);
    }
    take(bytes_of(part.contiguous()));
    reader.release();
    return;
  }
  const int64_t size = tensor.size(dim);
  const int64_t most = std::max<int64_t>(kPieceBytes / (bytes / size), 1);
  for (int64_t begin = 0; begin < size; begin += most) {
    hand_out_strided(
        tensor.narrow(dim, begin, std::min(most, size - begin)),
        dtype,
        reader,
        ends,
        take);
  }
}

}  // namespace ckpt_streamer::ops
