#include "format/checkpoint_files.h"

#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "format/known_formats.h"
#include "format/name_index.h"
#include "format/open_index.h"
#include "format/shard_index.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

const ByteSource& open_file(const std::string& path, SourceOpener& opener) {
  check_is_local(path);
  if (opener.kind(path) == PathKind::kDirectory) {
    fail_directory(path, opener);
  }
  return opener.open(path);
}

// Holds the shards' tensors against the weight_map.
class PlacementCheck {
 public:
  PlacementCheck(const std::string& index_path, const ShardIndex& shards)
      : index_path_(index_path),
        shards_(shards),
        names_(names_of(shards)),
        is_found_(shards.placements.size()) {}

  void add_shard(uint32_t shard, const CheckpointIndex& index) {
    for (size_t i = 0; i < index.slots.size(); ++i) {
      const std::string name = index.slot_name(i);
      const auto position = names_.find(name);
      if (!position.has_value()) {
        continue;
      }
      const ShardIndex::Placement& placement = shards_.placements[*position];
      if (placement.shard != shard) {
        fail(
            "shard " + quoted(shards_.shard_names[shard]) + " has the tensor " +
            quoted(name) + ", expected it in " +
            quoted(shards_.shard_names[placement.shard]) +
            " as 'weight_map' says");
      }
      is_found_[*position] = true;
    }
  }

  void check_complete() const {
    for (size_t i = 0; i < is_found_.size(); ++i) {
      if (!is_found_[i]) {
        const ShardIndex::Placement& placement = shards_.placements[i];
        fail(
            "shard " + quoted(shards_.shard_names[placement.shard]) +
            " has no tensor " + quoted(placement.tensor_name) +
            ", expected it there as 'weight_map' says");
      }
    }
  }

 private:
  static NameIndex names_of(const ShardIndex& shards) {
    std::vector<std::string_view> names;
    names.reserve(shards.placements.size());
    for (const ShardIndex::Placement& placement : shards.placements) {
      names.push_back(placement.tensor_name);
    }
    return NameIndex(std::move(names));
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw CheckpointError(ErrorKind::kCorrupt, index_path_, what);
  }

  const std::string& index_path_;
  const ShardIndex& shards_;
  const NameIndex names_;
  std::vector<bool> is_found_;
};

CheckpointIndex read_shards(const ByteSource& source, SourceOpener& opener) {
  ShardIndex shards = read_shard_index(source);
  const std::string& path = source.path();
  const size_t slash = path.rfind('/');
  const std::string directory =
      slash == std::string::npos ? "" : path.substr(0, slash + 1);
  PlacementCheck placements(path, shards);
  CheckpointIndex all;
  for (uint32_t shard = 0; shard < shards.shard_names.size(); ++shard) {
    CheckpointIndex one =
        read_index(open_file(directory + shards.shard_names[shard], opener));
    placements.add_shard(shard, one);
    all.append(std::move(one));
  }
  placements.check_complete();
  all.metadata = std::move(shards.metadata);
  all.shrink_to_fit();
  return all;
}

}  // namespace

CheckpointIndex read_checkpoint(const std::string& path, SourceOpener& opener) {
  const ByteSource& source = open_file(path, opener);
  return is_json_object(source) ? read_shards(source, opener)
                                : read_index(source);
}

CheckpointIndex read_checkpoint(
    std::span<const std::string> paths,
    SourceOpener& opener) {
  if (paths.empty()) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        "",
        "the list of paths is empty, expected the path of a checkpoint file");
  }
  CheckpointIndex all;
  for (const std::string& path : paths) {
    all.append(read_index(open_file(path, opener)));
  }
  all.shrink_to_fit();
  return all;
}

}  // namespace ckpt_streamer::format
