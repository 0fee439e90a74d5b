// torch.save's format before torch 1.6, still written with
// _use_new_zipfile_serialization=False: pickles one behind the other, then the
// storages' bytes.
//
//   magic number | protocol version | sys_info | object | list of storage keys
//   then for each key of the list: element count (int64) | elements
//
// Facts are from torch 2.13: serialization.py (_legacy_save, _legacy_load) and
// torch/csrc/serialization.cpp with generic/serialization.cpp before it
// (writeFileRaw). Storages lie at any offset, so most are not aligned.
#pragma once

#include <string_view>

#include "base/byte_source.h"
#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

// Whether a file that begins with `head` begins with the pickled magic number,
// of any pickle protocol.
[[nodiscard]] bool is_torch_legacy(std::string_view head) noexcept;

// The slots are those of torch_zip.h. A view of a storage, as torch before 0.4
// wrote them, is a part of its root's StorageRecord. What lies behind the last
// storage is ignored, as torch.load does.
//
// REQUIRES: is_torch_legacy.
// ENSURES: as read_torch_zip; storages are named by their keys.
// THROWS: as read_torch_zip; Corrupt when pickles, keys and storages contradict
// each other, Unsupported for another protocol version and for files of
// big-endian machines.
// Cost: O(pickles) time and memory, and one small read for each storage; no
// tensor byte is read.
[[nodiscard]] CheckpointIndex read_torch_legacy(const ByteSource& source);

}  // namespace ckpt_streamer::format
