#include "ops/jit_load.h"

#include <caffe2/serialize/inline_container.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/csrc/jit/serialization/storage_context.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/checkpoint_tensors.h"
#include "ops/errors.h"

namespace ckpt_streamer::ops {
namespace {

using caffe2::serialize::PyTorchStreamReader;
using caffe2::serialize::PyTorchStreamWriter;
using torch::jit::DeserializationStorageContext;

// torch's importer takes storages that are there already from a context, by the
// names that pickles have for them, where the archive is laid out as those of
// torch.package are (import.cpp, ScriptModuleDeserializer): code in
// .data/ts_code/code/, the pickles of module <id> in .data/ts_code/<id>/. So it
// is given an archive in memory with the code and the pickles there, and
// without tensors.
constexpr std::string_view kCodePrefix = "code/";
constexpr std::string_view kPackageCodePrefix = ".data/ts_code/code/";
constexpr std::string_view kModuleId = "0";

std::string packaged_pickle(std::string_view name) {
  return ".data/ts_code/" + std::string(kModuleId) + "/" + std::string(name);
}

// An archive's storages by pickle, and there by name.
using Storages = std::map<std::string, std::map<std::string, c10::Storage>>;

// Names of records, <pickle>/<storage>, by where their bytes begin.
std::unordered_map<uint64_t, std::string> storage_records(
    PyTorchStreamReader& archive) {
  std::unordered_map<uint64_t, std::string> records;
  for (std::string& name : archive.getAllRecords()) {
    if (name.starts_with("constants/") || name.starts_with("data/")) {
      records.emplace(archive.getRecordOffset(name), std::move(name));
    }
  }
  return records;
}

Storages storages_of(
    const CheckpointTensors& checkpoint,
    PyTorchStreamReader& archive) {
  const format::CheckpointIndex& index = checkpoint.index();
  const auto records = storage_records(archive);
  Storages storages;
  for (size_t i = 0; i < index.tensors.size(); ++i) {
    const uint32_t storage_index = index.tensors[i].storage_index;
    if (storage_index == format::kNoStorage) {
      continue;
    }
    const uint64_t begin = index.storages[storage_index].file_range.begin;
    const auto found = records.find(begin);
    TORCH_CHECK_VALUE(
        found != records.end(),
        index.files.front().path,
        ": has no record at byte ",
        begin,
        ", expected the one that was there when it was opened");
    const std::string& record = found->second;
    const size_t name_begin = record.rfind('/') + 1;
    std::map<std::string, c10::Storage>& of_pickle =
        storages[record.substr(0, name_begin - 1)];
    const std::string name = record.substr(name_begin);
    if (!of_pickle.contains(name)) {
      of_pickle.emplace(
          name,
          checkpoint.tensor(static_cast<uint32_t>(i)).storage());
    }
  }
  return storages;
}

// The small archive. Both pickles call their storages 0, 1, ...: when one of
// them is about to be read, the context gets its own.
class PackagedArchive final : public caffe2::serialize::ReadAdapterInterface {
 public:
  PackagedArchive(
      PyTorchStreamReader& archive,
      Storages storages,
      std::shared_ptr<DeserializationStorageContext> context)
      : storages_(std::move(storages)), context_(std::move(context)) {
    PyTorchStreamWriter writer([this](const void* data, size_t size) {
      bytes_.append(static_cast<const char*>(data), size);
      return size;
    });
    for (const std::string& name : archive.getAllRecords()) {
      if (name.starts_with(kCodePrefix)) {
        copy(
            archive,
            name,
            writer,
            std::string(kPackageCodePrefix) + name.substr(kCodePrefix.size()));
      } else if (name == "version" || name == "byteorder") {
        copy(archive, name, writer, name);
      }
    }
    for (const char* pickle : {"constants", "data"}) {
      const std::string name = std::string(pickle) + ".pkl";
      copy(archive, name, writer, packaged_pickle(name));
    }
    writer.writeEndOfFile();
  }

  // Tells it where the pickles are; without this, no storage is in the context.
  void find_pickles(PyTorchStreamReader& reader) {
    for (const char* pickle : {"constants", "data"}) {
      pickle_offsets_.emplace(
          reader.getRecordOffset(packaged_pickle(std::string(pickle) + ".pkl")),
          pickle);
    }
  }

  size_t size() const override {
    return bytes_.size();
  }

  size_t read(uint64_t offset, void* buffer, size_t count, const char*)
      const override {
    const auto pickle = pickle_offsets_.find(offset);
    if (pickle != pickle_offsets_.end()) {
      // It has no way to forget a storage.
      std::destroy_at(context_.get());
      std::construct_at(context_.get());
      const auto found = storages_.find(pickle->second);
      if (found != storages_.end()) {
        for (const auto& [name, storage] : found->second) {
          context_->addStorage(name, storage);
        }
      }
    }
    const size_t begin = std::min<size_t>(offset, bytes_.size());
    const size_t length = std::min(count, bytes_.size() - begin);
    std::memcpy(buffer, bytes_.data() + begin, length);
    return length;
  }

 private:
  static void copy(
      PyTorchStreamReader& archive,
      const std::string& name,
      PyTorchStreamWriter& writer,
      const std::string& new_name) {
    const auto [data, size] = archive.getRecord(name);
    writer.writeRecord(new_name, data.get(), size);
  }

  const Storages storages_;
  const std::shared_ptr<DeserializationStorageContext> context_;
  std::string bytes_;
  std::map<uint64_t, std::string> pickle_offsets_;
};

// Null for a file that it cannot read.
std::unique_ptr<PyTorchStreamReader> archive_at(const std::string& path) {
  try {
    return std::make_unique<PyTorchStreamReader>(path);
  } catch (const c10::Error&) {
    return nullptr;
  }
}

}  // namespace

torch::jit::Module jit_load(
    const std::string& path,
    std::optional<c10::Device> device,
    bool verify) {
  return with_torch_errors([&] {
    const CheckpointTensors checkpoint(
        path,
        std::numeric_limits<int64_t>::max(),  // what is copied, as a whole
        verify ? Verify::kOn : Verify::kOff);
    const std::unique_ptr<PyTorchStreamReader> archive = archive_at(path);
    TORCH_CHECK_VALUE(
        archive != nullptr && archive->hasRecord("constants.pkl") &&
            archive->hasRecord("data.pkl"),
        path,
        ": is not a TorchScript archive, expected what torch.jit.save writes");
    const auto context = std::make_shared<DeserializationStorageContext>();
    const auto packaged = std::make_shared<PackagedArchive>(
        *archive,
        storages_of(checkpoint, *archive),
        context);
    const auto reader = std::make_shared<PyTorchStreamReader>(packaged);
    packaged->find_pickles(*reader);
    return torch::jit::import_ir_module(
        std::make_shared<torch::jit::CompilationUnit>(),
        reader,
        context,
        device,
        std::string(kModuleId));
  });
}

}  // namespace ckpt_streamer::ops
