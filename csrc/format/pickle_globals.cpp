#include "format/pickle_globals.h"

#include <array>
#include <string_view>

namespace ckpt_streamer::format {
namespace {

struct StorageTypeName {
  std::string_view name;
  DType dtype;
};

// storage.py, _dtype_to_storage_type_map.
constexpr std::array<StorageTypeName, 17> kTypedStorages{{
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
    {"QInt8Storage", DType::kQInt8},
    {"QUInt8Storage", DType::kQUInt8},
    {"QInt32Storage", DType::kQInt32},
    {"QUInt4x2Storage", DType::kQUInt4x2},
    {"QUInt2x4Storage", DType::kQUInt2x4},
}};

// c10/core/ScalarType.h, toString(): what torch/csrc/jit/serialization/
// pickler.cpp (pushStorageOfTensor) puts before "Storage" beyond the above.
constexpr std::array<StorageTypeName, 10> kScriptStorages{{
    {"ComplexHalfStorage", DType::kComplex32},
    {"UInt16Storage", DType::kUInt16},
    {"UInt32Storage", DType::kUInt32},
    {"UInt64Storage", DType::kUInt64},
    {"Float8_e5m2Storage", DType::kFloat8E5M2},
    {"Float8_e4m3fnStorage", DType::kFloat8E4M3FN},
    {"Float8_e5m2fnuzStorage", DType::kFloat8E5M2FNUZ},
    {"Float8_e4m3fnuzStorage", DType::kFloat8E4M3FNUZ},
    {"Float8_e8m0fnuStorage", DType::kFloat8E8M0FNU},
    {"Float4_e2m1fn_x2Storage", DType::kFloat4E2M1FNX2},
}};

struct RoleName {
  std::string_view name;
  GlobalRole role;
};

constexpr std::array<RoleName, 6> kTorchNames{{
    {"Size", GlobalRole::kTorchSize},
    {"Tensor", GlobalRole::kTensorClass},
    {"per_tensor_affine", GlobalRole::kPerTensorScheme},
    {"per_tensor_symmetric", GlobalRole::kPerTensorScheme},
    {"per_channel_affine", GlobalRole::kPerChannelScheme},
    {"per_channel_affine_float_qparams", GlobalRole::kPerChannelScheme},
}};

// _utils.py. torch 1.8 to 1.12 had the compressed layouts apart, and torch
// before 1.13 knew but one other device without storages.
constexpr std::array<RoleName, 13> kRebuildNames{{
    {"_rebuild_tensor", GlobalRole::kRebuildTensor},
    {"_rebuild_tensor_v2", GlobalRole::kRebuildTensorV2},
    {"_rebuild_tensor_v3", GlobalRole::kRebuildTensorV3},
    {"_rebuild_parameter", GlobalRole::kRebuildParameter},
    {"_rebuild_parameter_with_state", GlobalRole::kRebuildParameterWithState},
    {"_rebuild_qtensor", GlobalRole::kRebuildQuantized},
    {"_rebuild_sparse_tensor", GlobalRole::kRebuildSparse},
    {"_rebuild_sparse_csr_tensor", GlobalRole::kRebuildSparse},
    {"_rebuild_nested_tensor", GlobalRole::kRebuildNested},
    {"_rebuild_meta_tensor_no_storage", GlobalRole::kRebuildMeta},
    {"_rebuild_device_tensor_from_numpy", GlobalRole::kRebuildFromArray},
    {"_rebuild_xla_tensor", GlobalRole::kRebuildFromArray},
    {"_rebuild_device_tensor_from_cpu_tensor",
     GlobalRole::kRebuildFromCpuTensor},
}};

constexpr std::array<RoleName, 3> kParameterNames{{
    {"Parameter", GlobalRole::kParameter},
    {"UninitializedParameter", GlobalRole::kUninitialized},
    {"UninitializedBuffer", GlobalRole::kUninitialized},
}};

template <size_t kCount>
GlobalRole find_role(
    const std::array<RoleName, kCount>& names,
    std::string_view name) noexcept {
  for (const RoleName& known : names) {
    if (name == known.name) {
      return known.role;
    }
  }
  return GlobalRole::kOther;
}

GlobalMeaning meaning_of_torch_name(std::string_view name) {
  for (const StorageTypeName& storage : kTypedStorages) {
    if (name == storage.name) {
      return {GlobalRole::kStorageType, storage.dtype};
    }
  }
  for (const StorageTypeName& storage : kScriptStorages) {
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
  return {find_role(kTorchNames, name)};
}

struct PythonName {
  std::string_view module;
  std::string_view name;
  GlobalRole role;
};

// Under the names that pickles give them: Python 2's too, which protocols
// before 3 use.
constexpr std::array<PythonName, 26> kPythonNames{{
    {"collections", "OrderedDict", GlobalRole::kOrderedDict},
    {"collections", "defaultdict", GlobalRole::kDefaultDict},
    {"collections", "Counter", GlobalRole::kCounter},
    {"collections", "deque", GlobalRole::kDeque},
    {"builtins", "set", GlobalRole::kSet},
    {"builtins", "frozenset", GlobalRole::kSet},
    {"builtins", "tuple", GlobalRole::kTupleClass},
    {"builtins", "complex", GlobalRole::kComplex},
    {"builtins", "bytes", GlobalRole::kBytes},
    {"builtins", "bytearray", GlobalRole::kBytes},
    {"_codecs", "encode", GlobalRole::kEncode},
    {"codecs", "encode", GlobalRole::kEncode},
    {"numpy", "ndarray", GlobalRole::kNumpyArray},
    {"numpy", "dtype", GlobalRole::kNumpyDType},
    {"numpy.core.multiarray", "_reconstruct", GlobalRole::kNumpyReconstruct},
    {"numpy._core.multiarray", "_reconstruct", GlobalRole::kNumpyReconstruct},
    {"numpy.core.multiarray", "scalar", GlobalRole::kNumpyScalar},
    {"numpy._core.multiarray", "scalar", GlobalRole::kNumpyScalar},
    {"numpy.core.numeric", "_frombuffer", GlobalRole::kNumpyFromBuffer},
    {"numpy._core.numeric", "_frombuffer", GlobalRole::kNumpyFromBuffer},
    {"copyreg", "_reconstructor", GlobalRole::kReconstructor},
    {"copyreg", "__newobj__", GlobalRole::kReconstructor},
    {"copyreg", "__newobj_ex__", GlobalRole::kReconstructor},
    {"copy_reg", "_reconstructor", GlobalRole::kReconstructor},
    {"copy_reg", "__newobj__", GlobalRole::kReconstructor},
    {"copy_reg", "__newobj_ex__", GlobalRole::kReconstructor},
}};

GlobalRole role_of_python(std::string_view module, std::string_view name) {
  if (module == "__builtin__") {
    module = "builtins";
  }
  for (const PythonName& known : kPythonNames) {
    if (module == known.module && name == known.name) {
      return known.role;
    }
  }
  return GlobalRole::kOther;
}

}  // namespace

std::string_view storage_type_name(DType dtype) noexcept {
  for (const StorageTypeName& storage : kTypedStorages) {
    if (storage.dtype == dtype) {
      return storage.name;
    }
  }
  return {};
}

GlobalMeaning meaning_of(const PickleGlobal& global) {
  const auto& [module, name] = global;
  if (module == "torch" || module == "torch.storage" ||
      module == "torch.cuda") {
    return meaning_of_torch_name(name);
  }
  if (module == "torch._utils") {
    const GlobalRole role = find_role(kRebuildNames, name);
    if (role != GlobalRole::kOther) {
      return {role};
    }
    // It has no data of its own: an object like all others.
    if (name.starts_with("_rebuild_") && name != "_rebuild_wrapper_subclass") {
      return {GlobalRole::kUnreadTensor};
    }
  }
  // torch.tensor is what torch._tensor was called before torch 1.9.
  if (module == "torch._tensor" || module == "torch.tensor") {
    if (name == "_rebuild_from_type" || name == "_rebuild_from_type_v2") {
      return {GlobalRole::kRebuildFromType};
    }
    if (name == "Tensor") {
      return {GlobalRole::kTensorClass};
    }
  }
  if (module == "torch.nn.parameter") {
    return {find_role(kParameterNames, name)};
  }
  if (module == "torch.serialization" && name == "_get_layout") {
    return {GlobalRole::kLayout};
  }
  // torch/jit/_pickle.py: lists and dicts under their static types.
  if (module == "torch.jit._pickle" &&
      (name == "restore_type_tag" || name.starts_with("build_"))) {
    return {GlobalRole::kFirstArgument};
  }
  if (module == "__torch__" || module.starts_with("__torch__.")) {
    return {GlobalRole::kScriptClass};
  }
  return {role_of_python(module, name)};
}

}  // namespace ckpt_streamer::format
