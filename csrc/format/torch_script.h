// What TorchScript archives mean, torch.jit.save's and the lite interpreter's
// .ptl: <prefix>/data.pkl holds the module's objects, whose tensors are in
// <prefix>/data/, and <prefix>/constants.pkl a tuple of the constants of its
// code, whose tensors are in <prefix>/constants/.
//
// Facts are from torch 2.13, torch/csrc/jit/serialization: export_module.cpp
// (ScriptModuleSerializer::serialize, writeArchive), import.cpp
// (ScriptModuleDeserializer::readArchive) and pickler.cpp
// (Pickler::pushIValueImpl). Code and bytecode are not looked at.
#pragma once

#include "base/byte_source.h"
#include "format/checkpoint_index.h"
#include "format/zip_directory.h"

namespace ckpt_streamer::format {

// serialization.py, _is_torchscript_zip; also the archives before torch 1.4,
// which are not read.
// REQUIRES: the directory has a record.
[[nodiscard]] bool is_torch_script(const ZipDirectory& directory);

// The slots are the module's tensors by their qualified names, those of the
// module's state_dict() among them, a shared module's under each of its names:
// attributes of tensors, lists, tuples and dicts are there as well. Then the
// constants, `constants.<index>`. An object that makes its own state
// (__getstate__) is that state.
//
// ENSURES, THROWS, cost: as read_torch_zip; besides Corrupt for an archive
// without data.pkl, Unsupported for modules shared so often that their names
// unfold to many times the file.
// REQUIRES: is_torch_script(directory); it was read from `source`.
[[nodiscard]] CheckpointIndex read_torch_script(
    const ByteSource& source,
    const ZipDirectory& directory);

}  // namespace ckpt_streamer::format
