#include "format/torch_script.h"

#include <string>

#include "base/error.h"
#include "format/pickle_machine.h"
#include "format/tensor_tree.h"
#include "format/text.h"
#include "format/torch_archive.h"
#include "format/zip_storages.h"

namespace ckpt_streamer::format {
namespace {

void append_archive(
    const ByteSource& source,
    const ZipDirectory& directory,
    const std::string& prefix,
    const std::string& name,
    const std::string& root_name,
    CheckpointIndex& index) {
  const std::string record_name = prefix + "/" + name + ".pkl";
  const ZipEntry* const entry = directory.find(record_name);
  if (entry == nullptr) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        "is a TorchScript archive without " + quoted(record_name) +
            ", expected one as torch.jit.save writes");
  }
  const PickleOrigin origin{
      source.path(),
      record_name,
      entry->data_range.begin};
  const PickleTree tree = load_pickle(source, *entry, origin);
  ZipStorages storages(directory, prefix + "/" + name + "/", source.path());
  index.read_records.push_back(record_of(directory, *entry));
  append_tensors(
      {tree,
       origin,
       entry->data_range.size_bytes(),
       SharedContainers::kEachPath},
      storages,
      root_name,
      index);
}

}  // namespace

bool is_torch_script(const ZipDirectory& directory) {
  const std::string prefix = archive_prefix(directory);
  return directory.find(prefix + "/constants.pkl") != nullptr ||
         (directory.find(prefix + "/model.json") != nullptr &&
          directory.find(prefix + "/version") != nullptr);
}

CheckpointIndex read_torch_script(
    const ByteSource& source,
    const ZipDirectory& directory) {
  const std::string prefix = archive_prefix(directory);
  // import_legacy.cpp: one JSON text in place of the pickles.
  if (const ZipEntry* model = directory.find(prefix + "/model.json")) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        source.path(),
        "is a TorchScript archive from before torch 1.4 (it has " +
            quoted(model->name) +
            "), which is not read; expected one of a later torch");
  }
  check_archive(source, directory, prefix);
  CheckpointIndex index;
  append_archive(source, directory, prefix, "data", "", index);
  append_archive(source, directory, prefix, "constants", "constants", index);
  return index;
}

}  // namespace ckpt_streamer::format
