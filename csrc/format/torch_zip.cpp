#include "format/torch_zip.h"

#include <string>

#include "base/error.h"
#include "format/pickle_machine.h"
#include "format/tensor_tree.h"
#include "format/text.h"
#include "format/torch_archive.h"
#include "format/zip_storages.h"

namespace ckpt_streamer::format {

CheckpointIndex read_torch_zip(const ByteSource& source) {
  return read_torch_zip(source, ZipDirectory::read(source));
}

CheckpointIndex read_torch_zip(
    const ByteSource& source,
    const ZipDirectory& directory) {
  if (directory.entries().empty()) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        "is a zip file without records, expected a torch.save zip file");
  }
  const std::string prefix = archive_prefix(directory);
  const ZipEntry* entry = directory.find(prefix + "/data.pkl");
  if (entry == nullptr) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        source.path(),
        "is a zip file without " + quoted(prefix + "/data.pkl") +
            ", expected a torch.save zip file");
  }
  check_archive(source, directory, prefix);
  const PickleOrigin origin{
      source.path(),
      std::string(entry->name),
      entry->data_range.begin};
  const PickleTree tree = load_pickle(source, *entry, origin);
  ZipStorages storages(directory, prefix + "/data/", source.path());
  CheckpointIndex index;
  index.read_records.push_back(record_of(directory, *entry));
  append_tensors(
      {tree, origin, entry->data_range.size_bytes()},
      storages,
      "",
      index);
  return index;
}

}  // namespace ckpt_streamer::format
