// The storages of a legacy torch.save file: found by the list of their keys and
// by what the object's persistent ids say of them.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/byte_range.h"
#include "base/byte_source.h"
#include "base/error.h"
#include "format/checkpoint_index.h"
#include "format/name_index.h"
#include "format/pickle_machine.h"
#include "format/storage_lookup.h"

namespace ckpt_streamer::format {

class LegacyStorages final : public StorageLookup {
 public:
  // `object` is the pickle with the persistent ids, `keys` that of the list of
  // keys; the first storage begins at `data_offset`.
  // REQUIRES: all outlive this.
  // THROWS: CheckpointError Corrupt for a list that is none, for keys that come
  // twice, for persistent ids of another form, for storages that are outside
  // the file or of another size than a persistent id says, and for views
  // outside their storage; Unsupported for storages of an unknown type.
  LegacyStorages(
      const ByteSource& source,
      const PickleTree& object,
      const PickleOrigin& object_origin,
      const PickleTree& keys,
      const PickleOrigin& keys_origin,
      uint64_t data_offset);

  [[nodiscard]] std::optional<StorageId> parse(
      const PickleTree& tree,
      std::span<const ValueId> parts) const override;
  [[nodiscard]] const char* id_form() const noexcept override {
    return "('storage', type, key, location, count, view)";
  }
  [[nodiscard]] std::optional<FoundStorage> find(
      std::string_view key,
      std::string_view path) override;
  [[nodiscard]] std::string expected_text(std::string_view key) const override;

 private:
  // What the first persistent id of a storage says.
  struct Declared {
    bool is_known = false;
    uint64_t item_bytes = 0;
    uint64_t size_bytes = 0;
    uint64_t file_offset = 0;  // of the persistent id
  };
  struct View {
    uint32_t root;         // position in keys_
    ByteRange byte_range;  // inside the root
  };

  void read_keys(const PickleTree& keys, const PickleOrigin& origin);
  void read_persistent_ids(
      const PickleTree& object,
      const PickleOrigin& origin);
  void declare(
      const PickleTree& object,
      std::span<const ValueId> parts,
      DType dtype,
      uint64_t file_offset);
  void declare_view(
      const PickleTree& object,
      std::span<const ValueId> view,
      uint32_t root,
      uint64_t item_bytes,
      uint64_t file_offset);
  void locate(uint64_t data_offset);

  // Of a string or int; nullopt for anything else.
  std::optional<std::string_view> text_of_key(
      const PickleTree& tree,
      ValueId id);
  [[noreturn]] void fail_type(
      std::string_view key,
      const std::string& type,
      uint64_t file_offset) const;
  [[noreturn]] void fail(
      ErrorKind kind,
      const std::string& what,
      uint64_t file_offset) const;

  const ByteSource& source_;
  std::deque<std::string> int_texts_;        // of keys that are ints
  std::vector<std::string_view> key_texts_;  // in the order of the file
  NameIndex keys_;                           // of key_texts_
  std::vector<Declared> declared_;           // by position in key_texts_
  std::vector<ByteRange> file_ranges_;       // likewise
  std::map<std::string_view, View> views_;   // by their own keys
};

}  // namespace ckpt_streamer::format
