#include "format/known_formats.h"

#include <algorithm>
#include <array>
#include <span>

#include "base/error.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

using namespace std::string_view_literals;

struct Magic {
  std::string_view bytes;
  size_t offset;
  const char* kind;
};

// First match wins.
constexpr std::array kMagics{
    // inline_container.cc: the preview release of the zip format.
    Magic{"PYTORCH1"sv, 0, "a PyTorch preview archive"},
    // mobile_bytecode.fbs, file_identifier.
    Magic{"PTMF"sv, 4, "a PyTorch mobile flatbuffer"},
    // executorch, schema/program.fbs, file_identifier "ET??".
    Magic{"ET12"sv, 4, "an ExecuTorch program"},
    // tensorflow/compiler/mlir/lite/schema/schema.fbs, file_identifier.
    Magic{"TFL3"sv, 4, "a TensorFlow Lite model"},
    Magic{"GGUF"sv, 0, "a GGUF file"},
    // llama.cpp before GGUF: 'ggml', 'ggmf' and 'ggjt' as 32-bit numbers.
    Magic{"lmgg"sv, 0, "a GGML file"},
    Magic{"fmgg"sv, 0, "a GGML file"},
    Magic{"tjgg"sv, 0, "a GGML file"},
    // HDF5 File Format Specification 3.0, II.A: at 0, or behind a user block.
    Magic{"\x89HDF\r\n\x1a\n"sv, 0, "an HDF5 file"},
    Magic{"\x89HDF\r\n\x1a\n"sv, 512, "an HDF5 file"},
    Magic{"\x89HDF\r\n\x1a\n"sv, 1024, "an HDF5 file"},
    Magic{"\x89HDF\r\n\x1a\n"sv, 2048, "an HDF5 file"},
    Magic{"\x93NUMPY"sv, 0, "a NumPy .npy file"},
    Magic{"\x1f\x8b"sv, 0, "a gzip file"},
    Magic{"BZh"sv, 0, "a bzip2 file"},
    Magic{
        "\xfd"
        "7zXZ\0"sv,
        0,
        "an xz file"},
    Magic{"\x28\xb5\x2f\xfd"sv, 0, "a Zstandard file"},
    Magic{"7z\xbc\xaf\x27\x1c"sv, 0, "a 7z file"},
    Magic{"Rar!\x1a\x07"sv, 0, "a RAR file"},
    Magic{"PAR1"sv, 0, "a Parquet file"},
    Magic{"ARROW1"sv, 0, "an Arrow file"},
    // tensorflow/python/training/checkpoint_management.py: the text file
    // 'checkpoint' beside a checkpoint's parts.
    Magic{
        "model_checkpoint_path: \""sv,
        0,
        "the text file 'checkpoint' of a TensorFlow checkpoint"},
    // git-lfs, docs/spec.md.
    Magic{
        "version https://git-lfs.github.com/spec/"sv,
        0,
        "a Git LFS pointer in place of its file"},
    Magic{"<!DOCTYPE html"sv, 0, "an HTML page"},
    Magic{"<!doctype html"sv, 0, "an HTML page"},
    Magic{"<html"sv, 0, "an HTML page"},
};

// serialization.py, _legacy_load: the members of the tar files that torch
// wrote before 0.2, each a pickle or raw storages.
constexpr std::array kTarMembers{
    "sys_info"sv,
    "pickle"sv,
    "storages"sv,
    "tensors"sv};

bool is_printable(std::string_view text) noexcept {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return c >= 0x20 && c < 0x7F;
  });
}

unsigned byte_at(std::string_view bytes, size_t at) noexcept {
  return at < bytes.size() ? static_cast<unsigned char>(bytes[at]) : 0x100;
}

// Printable text of [fewest, 128) bytes behind its length, as in protobuf.
bool has_short_text(std::string_view bytes, size_t at, size_t fewest) noexcept {
  const unsigned length = byte_at(bytes, at);
  return length >= fewest && length < 128 && bytes.size() - at - 1 >= length &&
         is_printable(bytes.substr(at + 1, length));
}

// onnx.proto, ModelProto: ir_version = 1 (3 to some 13 by now), producer_name =
// 2. saved_model.proto, SavedModel: saved_model_schema_version = 1 (always 1),
// meta_graphs = 2. graph.proto, GraphDef: node = 1, a NodeDef with name = 1.
const char* recognize_protobuf(std::string_view head) noexcept {
  const unsigned first = byte_at(head, 0);
  const unsigned second = byte_at(head, 1);
  const unsigned third = byte_at(head, 2);
  if (first == 0x08 && second == 1 && third == 0x12) {
    return "a TensorFlow SavedModel (saved_model.pb)";
  }
  if (first == 0x08 && second >= 2 && second < 32 && third == 0x12 &&
      has_short_text(head, 3, 1)) {
    return "an ONNX model";
  }
  if (first == 0x0A && second < 128 && third == 0x0A &&
      has_short_text(head, 3, 1)) {
    const size_t op = 4 + byte_at(head, 3);
    if (byte_at(head, op) == 0x12 && has_short_text(head, op + 1, 2)) {
      return "a TensorFlow graph (.pb)";
    }
  }
  return nullptr;
}

// msgpack's spec.md: a map of text to others, as flax.serialization writes.
bool is_msgpack_map(std::string_view head) noexcept {
  const unsigned first = byte_at(head, 0);
  const size_t key = first > 0x80 && first <= 0x8F ? 1  // fixmap
                     : first == 0xDE               ? 3  // map 16
                     : first == 0xDF               ? 5  // map 32
                                                   : 0;
  const unsigned text = byte_at(head, key);
  const bool is_fixstr = text > 0xA0 && text <= 0xBF;
  return key != 0 && is_fixstr && head.size() - key - 1 >= (text & 0x1F) &&
         is_printable(head.substr(key + 1, text & 0x1F));
}

std::optional<std::string> recognize_tar(std::string_view head) {
  // POSIX.1-2017, pax, "ustar Interchange Format".
  if (head.size() < 262 || head.substr(257, 5) != "ustar") {
    return std::nullopt;
  }
  std::string_view member = head.substr(0, head.substr(0, 100).find('\0'));
  member = member.substr(member.starts_with("./") ? 2 : 0);
  const bool is_torch =
      std::find(kTarMembers.begin(), kTarMembers.end(), member) !=
      kTarMembers.end();
  return is_torch ? "a torch.save tar file (before torch 0.2)" : "a tar file";
}

// leveldb, table/format.h, kTableMagicNumber: the last 8 bytes of a table.
bool has_table_footer(const ByteSource& source) {
  constexpr std::string_view kMagic = "\x57\xfb\x80\x8b\x24\x75\x47\xdb"sv;
  if (source.size_bytes() < 48) {
    return false;
  }
  std::string tail(kMagic.size(), '\0');
  source.read(
      source.size_bytes() - kMagic.size(),
      std::as_writable_bytes(std::span(tail)));
  return tail == kMagic;
}

}  // namespace

std::optional<std::string> recognize(
    const ByteSource& source,
    std::string_view head) {
  for (const Magic& magic : kMagics) {
    if (head.size() >= magic.offset &&
        head.substr(magic.offset).starts_with(magic.bytes)) {
      return magic.kind;
    }
  }
  if (auto tar = recognize_tar(head)) {
    return tar;
  }
  // PROTO 2 to 5, the first opcode of any pickle since protocol 2.
  if (byte_at(head, 0) == 0x80 && byte_at(head, 1) >= 2 &&
      byte_at(head, 1) <= 5) {
    return "a plain pickle";
  }
  if (const char* const kind = recognize_protobuf(head)) {
    return kind;
  }
  if (is_msgpack_map(head)) {
    return "a msgpack file, as Flax writes";
  }
  if (has_table_footer(source)) {
    return "a TensorFlow checkpoint (.index)";
  }
  return std::nullopt;
}

std::optional<std::string> recognize_zip(const ZipDirectory& directory) {
  const auto entries = directory.entries();
  const std::string_view first = entries.front().name;
  const std::string prefix(first.substr(0, first.find('/') + 1));
  // torch/package/package_exporter.py, _finalize_zip.
  if (directory.find(prefix + ".data/extern_modules") != nullptr) {
    return "a torch.package archive";
  }
  // torch/export/pt2_archive/constants.py; serialized_exported_program.json is
  // torch 2.1's to 2.6's.
  if (directory.find(prefix + "archive_format") != nullptr ||
      directory.find("serialized_exported_program.json") != nullptr) {
    return "a torch.export archive (.pt2)";
  }
  // keras/src/saving/saving_lib.py.
  if (directory.find("model.weights.h5") != nullptr) {
    return "a Keras archive (.keras)";
  }
  const bool is_npz =
      std::all_of(entries.begin(), entries.end(), [](const ZipEntry& entry) {
        return entry.name.ends_with(".npy");
      });
  return is_npz ? std::optional<std::string>("a NumPy .npz file")
                : std::nullopt;
}

void fail_known(const std::string& path, std::string_view kind) {
  throw CheckpointError(
      ErrorKind::kUnsupported,
      path,
      "is " + std::string(kind) + ", which is not read; expected " +
          kExpectedFile);
}

void check_is_local(const std::string& path) {
  // RFC 3986, 3.1: scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." ). One
  // letter is a drive, not a scheme.
  const size_t end = path.find("://");
  if (end == std::string::npos || end < 2) {
    return;
  }
  const auto is_letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  };
  const std::string_view scheme = std::string_view(path).substr(0, end);
  const bool is_scheme = is_letter(scheme.front()) &&
                         std::all_of(scheme.begin(), scheme.end(), [&](char c) {
                           return is_letter(c) || (c >= '0' && c <= '9') ||
                                  c == '+' || c == '-' || c == '.';
                         });
  if (is_scheme) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        path,
        "is a URL (" + std::string(scheme) +
            "), which is not read; expected the path of a local file");
  }
}

void fail_directory(const std::string& path, const SourceOpener& opener) {
  const std::string prefix = path.ends_with('/') ? path : path + "/";
  const auto has = [&](const char* name) {
    return opener.kind(prefix + name) != PathKind::kMissing;
  };
  // torch/distributed/checkpoint/filesystem.py, _metadata_fn.
  if (has(".metadata")) {
    fail_known(path, "the directory of a distributed checkpoint");
  }
  if (has("saved_model.pb")) {
    fail_known(path, "the directory of a TensorFlow SavedModel");
  }
  // The names of transformers and of diffusers, the index before what it lists.
  for (const char* const name :
       {"model.safetensors.index.json",
        "model.safetensors",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors",
        "adapter_model.safetensors"}) {
    if (has(name)) {
      throw CheckpointError(
          ErrorKind::kInvalidArgument,
          path,
          std::string("is a directory, expected the path of the ") +
              quoted(name) + " in it");
    }
  }
  throw CheckpointError(
      ErrorKind::kInvalidArgument,
      path,
      "is a directory, expected a checkpoint file");
}

}  // namespace ckpt_streamer::format
