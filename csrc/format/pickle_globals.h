// What the globals of torch.save's pickles mean to a reader of tensors.
#pragma once

#include <cstdint>
#include <string_view>

#include "format/checkpoint_index.h"
#include "format/pickle_machine.h"

namespace ckpt_streamer::format {

enum class GlobalRole : uint8_t {
  kOther,
  kOrderedDict,
  kDefaultDict,
  kCounter,
  kDeque,
  kSet,         // also frozenset
  kTupleClass,  // tuple itself
  kComplex,
  kBytes,             // also bytearray
  kEncode,            // of the codecs module
  kReconstructor,     // copyreg's makers of an instance of their first argument
  kFirstArgument,     // returns what it is given
  kScriptClass,       // of TorchScript: its attributes are its state
  kNumpyReconstruct,  // an empty array whose state is all of it
  kNumpyScalar,
  kNumpyFromBuffer,
  kNumpyArray,  // the class
  kNumpyDType,
  kTorchSize,
  kTensorClass,  // torch.Tensor itself
  kStorageType,
  kDType,
  kLayout,  // a layout by its name
  kPerTensorScheme,
  kPerChannelScheme,
  // What makes a tensor: makes_tensor() is all from here on.
  kRebuildTensor,
  kRebuildTensorV2,
  kRebuildTensorV3,
  kRebuildParameter,
  kRebuildParameterWithState,
  kParameter,
  kRebuildFromType,
  kRebuildQuantized,
  kRebuildSparse,
  kRebuildNested,
  kRebuildMeta,
  kRebuildFromArray,
  kRebuildFromCpuTensor,
  kUninitialized,
  kUnreadTensor,
};

[[nodiscard]] constexpr bool makes_tensor(GlobalRole role) noexcept {
  return role >= GlobalRole::kRebuildTensor;
}

struct GlobalMeaning {
  GlobalRole role = GlobalRole::kOther;
  DType dtype = DType::kUInt8;  // of a storage type or dtype
};

// Any global that is not listed here is kOther: data like all others.
[[nodiscard]] GlobalMeaning meaning_of(const PickleGlobal& global);

// "FloatStorage": what torch.save calls a storage of the dtype, in the module
// torch; empty for dtypes whose storages it saves as untyped ones.
[[nodiscard]] std::string_view storage_type_name(DType dtype) noexcept;

}  // namespace ckpt_streamer::format
