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

constexpr DType kLastDType = DType::kFloat4E2M1FNX2;

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
  return {name == "Size" ? GlobalRole::kTorchSize : GlobalRole::kOther};
}

struct PythonName {
  std::string_view module;
  std::string_view name;
  GlobalRole role;
};

// Under the names that pickles give them: Python 2's too, which protocols
// before 3 use.
constexpr std::array<PythonName, 17> kPythonNames{{
    {"collections", "OrderedDict", GlobalRole::kOrderedDict},
    {"collections", "defaultdict", GlobalRole::kDefaultDict},
    {"collections", "Counter", GlobalRole::kCounter},
    {"collections", "deque", GlobalRole::kDeque},
    {"builtins", "set", GlobalRole::kSet},
    {"builtins", "frozenset", GlobalRole::kSet},
    {"builtins", "complex", GlobalRole::kComplex},
    {"builtins", "bytes", GlobalRole::kBytes},
    {"builtins", "bytearray", GlobalRole::kBytes},
    {"_codecs", "encode", GlobalRole::kEncode},
    {"codecs", "encode", GlobalRole::kEncode},
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
