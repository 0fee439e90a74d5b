#include "ops/scalar_types.h"

#include <c10/util/Exception.h>

namespace ckpt_streamer::ops {

at::ScalarType scalar_type_of(format::DType dtype) {
  using format::DType;
  switch (dtype) {
    case DType::kUInt8:
      return at::kByte;
    case DType::kInt8:
      return at::kChar;
    case DType::kUInt16:
      return at::kUInt16;
    case DType::kInt16:
      return at::kShort;
    case DType::kUInt32:
      return at::kUInt32;
    case DType::kInt32:
      return at::kInt;
    case DType::kUInt64:
      return at::kUInt64;
    case DType::kInt64:
      return at::kLong;
    case DType::kFloat16:
      return at::kHalf;
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kFloat32:
      return at::kFloat;
    case DType::kFloat64:
      return at::kDouble;
    case DType::kComplex32:
      return at::kComplexHalf;
    case DType::kComplex64:
      return at::kComplexFloat;
    case DType::kComplex128:
      return at::kComplexDouble;
    case DType::kBool:
      return at::kBool;
    case DType::kFloat8E4M3FN:
      return at::kFloat8_e4m3fn;
    case DType::kFloat8E4M3FNUZ:
      return at::kFloat8_e4m3fnuz;
    case DType::kFloat8E5M2:
      return at::kFloat8_e5m2;
    case DType::kFloat8E5M2FNUZ:
      return at::kFloat8_e5m2fnuz;
    case DType::kFloat8E8M0FNU:
      return at::kFloat8_e8m0fnu;
    case DType::kFloat4E2M1FNX2:
      return at::kFloat4_e2m1fn_x2;
    case DType::kInt1:
      return at::kInt1;
    case DType::kInt2:
      return at::kInt2;
    case DType::kInt3:
      return at::kInt3;
    case DType::kInt4:
      return at::kInt4;
    case DType::kInt5:
      return at::kInt5;
    case DType::kInt6:
      return at::kInt6;
    case DType::kInt7:
      return at::kInt7;
    case DType::kUInt1:
      return at::kUInt1;
    case DType::kUInt2:
      return at::kUInt2;
    case DType::kUInt3:
      return at::kUInt3;
    case DType::kUInt4:
      return at::kUInt4;
    case DType::kUInt5:
      return at::kUInt5;
    case DType::kUInt6:
      return at::kUInt6;
    case DType::kUInt7:
      return at::kUInt7;
    case DType::kBits1x8:
      return at::kBits1x8;
    case DType::kBits2x4:
      return at::kBits2x4;
    case DType::kBits4x2:
      return at::kBits4x2;
    case DType::kBits8:
      return at::kBits8;
    case DType::kBits16:
      return at::kBits16;
    case DType::kQInt8:
      return at::kQInt8;
    case DType::kQUInt8:
      return at::kQUInt8;
    case DType::kQInt32:
      return at::kQInt32;
    case DType::kQUInt4x2:
      return at::kQUInt4x2;
    case DType::kQUInt2x4:
      return at::kQUInt2x4;
  }
  TORCH_INTERNAL_ASSERT(false, "a DType without a torch dtype");
}

std::optional<format::DType> dtype_of(at::ScalarType dtype) {
  for (int i = 0; i <= static_cast<int>(format::kLastDType); ++i) {
    const auto candidate = static_cast<format::DType>(i);
    if (scalar_type_of(candidate) == dtype) {
      return candidate;
    }
  }
  return std::nullopt;
}

}  // namespace ckpt_streamer::ops
