#include "format/pickle_globals.h"

#include <array>
#include <string_view>

namespace ckpt_streamer::format {
namespace {

struct StorageTypeName {
  std::string_view name;
  DType dtype;
};

// storage.py, _dtype_to_storage_type_map without the quantized types.
constexpr std::array<StorageTypeName, 12> kTypedStorages{{
    {"DoubleStorage", DType::kFloat64},
    {"FloatStorage", DType::kFloat32},
    {"HalfStorage", DType::kFloat16},
    {"BFloat16Storage", DType::kBFloat16},
    {"LongStorage", DType::kInt64},
    {"IntStorage", DType::kInt32},
    {"ShortStorage", DType::kInt16},
    {"CharStorage", DType::kInt8},
    {"ByteStorage", DType::kUInt8},
    {"BoolStorage", DType::kBool},
    {"ComplexDoubleStorage", DType::kComplex128},
    {"ComplexFloatStorage", DType::kComplex64},
}};

constexpr DType kLastDType = DType::kFloat8E8M0FNU;

GlobalMeaning meaning_of_torch_name(std::string_view name) {
  for (const StorageTypeName& storage : kTypedStorages) {
    if (name == storage.name) {
      return {GlobalRole::kStorageType, storage.dtype};
    }
  }
  // Counts bytes, as _load does: "if storage_type is torch.UntypedStorage:
  // dtype = torch.uint8". The underscore is torch 1.11's and 1.12's.
  if (name == "UntypedStorage" || name == "_UntypedStorage") {
    return {GlobalRole::kStorageType, DType::kUInt8};
  }
  for (int i = 0; i <= static_cast<int>(kLastDType); ++i) {
    const auto dtype = static_cast<DType>(i);
    if (name == dtype_name(dtype)) {
      return {GlobalRole::kDType, dtype};
    }
  }
  return {name == "Size" ? GlobalRole::kTorchSize : GlobalRole::kOther};
}

}  // namespace

GlobalMeaning meaning_of(const PickleGlobal& global) {
  const auto& [module, name] = global;
  if (module == "torch" || module == "torch.storage" ||
      module == "torch.cuda") {
    return meaning_of_torch_name(name);
  }
  if (module == "torch._utils") {
    if (name == "_rebuild_tensor") {
      return {GlobalRole::kRebuildTensor};
    }
    if (name == "_rebuild_tensor_v2") {
      return {GlobalRole::kRebuildTensorV2};
    }
    if (name == "_rebuild_tensor_v3") {
      return {GlobalRole::kRebuildTensorV3};
    }
    if (name == "_rebuild_parameter") {
      return {GlobalRole::kRebuildParameter};
    }
    if (name == "_rebuild_parameter_with_state") {
      return {GlobalRole::kRebuildParameterWithState};
    }
    if (name.starts_with("_rebuild_")) {
      return {GlobalRole::kUnreadTensor};
    }
  }
  // torch.tensor is what torch._tensor was called before torch 1.9.
  if ((module == "torch._tensor" || module == "torch.tensor") &&
      name.starts_with("_rebuild_from_type")) {
    return {GlobalRole::kUnreadTensor};
  }
  if (module == "torch.nn.parameter") {
    if (name == "Parameter" || name == "Buffer") {
      return {GlobalRole::kParameter};
    }
    if (name.starts_with("Uninitialized")) {
      return {GlobalRole::kUnreadTensor};
    }
  }
  if (module == "collections") {
    if (name == "OrderedDict") {
      return {GlobalRole::kOrderedDict};
    }
    if (name == "defaultdict") {
      return {GlobalRole::kDefaultDict};
    }
  }
  return {};
}

}  // namespace ckpt_streamer::format
