// What torch.save's and torch.jit.save's zip archives have in common: one top
// folder, and small records that say how the others are to be read.
//
// Facts are from torch 2.13: caffe2/serialize/inline_container.cc
// (PyTorchStreamReader) and serialization.py (_load).
#pragma once

#include <string>

#include "base/byte_source.h"
#include "format/checkpoint_index.h"
#include "format/pickle_machine.h"
#include "format/zip_directory.h"

namespace ckpt_streamer::format {

// The archive's name, which is the top folder of its first record.
// REQUIRES: the directory has a record.
[[nodiscard]] std::string archive_prefix(const ZipDirectory& directory);

// A record that is a pickle, as a tree.
// THROWS: CheckpointError Unsupported when it is compressed; as
// PickleTree::load.
[[nodiscard]] PickleTree load_pickle(
    const ByteSource& source,
    const ZipEntry& entry,
    const PickleOrigin& origin);

// The record as an index keeps it.
[[nodiscard]] StorageRecord record_of(
    const ZipDirectory& directory,
    const ZipEntry& entry);

// Looks at <prefix>/byteorder and <prefix>/version, if they are there.
// THROWS: CheckpointError Unsupported for big-endian archives and for later
// versions of the archive, Corrupt for anything else that is not expected.
void check_archive(
    const ByteSource& source,
    const ZipDirectory& directory,
    const std::string& prefix);

}  // namespace ckpt_streamer::format
