#include "format/known_formats.h"

#include "base/error.h"
#include "format/open_index.h"
#include "memory_source.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using namespace std::literals;
using testing::build_zip;
using testing::MemorySource;

void expect_known(const std::string& file, const std::string& kind) {
  const MemorySource source(file);
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: is " + kind +
          ", which is not read; expected a torch.save, TorchScript or "
          "safetensors file",
      read_index(source));
}

void expect_unknown(const std::string& file) {
  const MemorySource source(file);
  EXPECT(!recognize(source, file).has_value());
}

std::string tar_of(const std::string& member) {
  return member + std::string(257 - member.size(), '\0') + "ustar\00000" +
         std::string(248, '\0');
}

TEST(known_formats_of_torch) {
  expect_known("PYTORCH1....", "a PyTorch preview archive");
  expect_known("\x10\0\0\0PTMF...."s, "a PyTorch mobile flatbuffer");
  expect_known("\x10\0\0\0ET12...."s, "an ExecuTorch program");
  for (const char* const member :
       {"sys_info", "./pickle", "storages", "tensors"}) {
    expect_known(tar_of(member), "a torch.save tar file (before torch 0.2)");
  }
  expect_known("\x80\x04N.", "a plain pickle");
}

TEST(known_formats_of_others) {
  expect_known("GGUF\x03\x00\x00\x00"s, "a GGUF file");
  expect_known("lmgg....", "a GGML file");
  expect_known("fmgg....", "a GGML file");
  expect_known("tjgg....", "a GGML file");
  const std::string hdf5 = "\x89HDF\r\n\x1a\n";
  for (const size_t offset : {0, 512, 1024, 2048}) {
    expect_known(std::string(offset, '\0') + hdf5, "an HDF5 file");
  }
  expect_known("\x93NUMPY\x01", "a NumPy .npy file");
  expect_known("\x10\0\0\0TFL3...."s, "a TensorFlow Lite model");
  expect_known("PAR1....", "a Parquet file");
  expect_known("ARROW1\0\0"s, "an Arrow file");
  expect_known("\x81\xa6params\x82"s, "a msgpack file, as Flax writes");
  expect_known("\xde\0\x10\xa6params\x82"s, "a msgpack file, as Flax writes");
}

TEST(known_formats_of_tensorflow) {
  expect_known(
      std::string(48, 'x') + "\x57\xfb\x80\x8b\x24\x75\x47\xdb",
      "a TensorFlow checkpoint (.index)");
  expect_known(
      "model_checkpoint_path: \"model.ckpt-1\"\n",
      "the text file 'checkpoint' of a TensorFlow checkpoint");
  expect_known(
      "\x08\x01\x12\xa5\x03\x0a"s,
      "a TensorFlow SavedModel (saved_model.pb)");
  expect_known(
      "\x0a\x13\x0a\x05input\x12\x0bPlaceholder"s,
      "a TensorFlow graph (.pb)");
  expect_known("\x08\x07\x12\x07pytorch\x1a"s, "an ONNX model");
}

TEST(known_formats_of_archives) {
  expect_known("\x1f\x8b\x08", "a gzip file");
  expect_known("BZh9", "a bzip2 file");
  expect_known("\xfd\x37zXZ\0"s, "an xz file");
  expect_known("\x28\xb5\x2f\xfd", "a Zstandard file");
  expect_known("7z\xbc\xaf\x27\x1c", "a 7z file");
  expect_known("Rar!\x1a\x07", "a RAR file");
  expect_known(tar_of("model/weights.bin"), "a tar file");
}

TEST(known_formats_of_failed_downloads) {
  expect_known(
      "version https://git-lfs.github.com/spec/v1\noid sha256:...",
      "a Git LFS pointer in place of its file");
  expect_known("<!DOCTYPE html><html>", "an HTML page");
  expect_known("<!doctype html><html>", "an HTML page");
  expect_known("<html><body>", "an HTML page");
}

TEST(known_formats_of_zip_files) {
  expect_known(
      build_zip({{"p/.data/extern_modules", ""}, {"p/model/data.pkl", "N."}}),
      "a torch.package archive");
  expect_known(
      build_zip({{"p/archive_format", "pt2"}, {"p/data/x", ""}}),
      "a torch.export archive (.pt2)");
  expect_known(
      build_zip({{"version", ""}, {"serialized_exported_program.json", ""}}),
      "a torch.export archive (.pt2)");
  expect_known(
      build_zip({{"metadata.json", ""}, {"model.weights.h5", ""}}),
      "a Keras archive (.keras)");
  expect_known(build_zip({{"x.npy", ""}, {"y.npy", ""}}), "a NumPy .npz file");
}

TEST(known_formats_are_not_seen_everywhere) {
  expect_unknown("");
  expect_unknown("x");
  expect_unknown("\x08");
  expect_unknown("\x08\x07\x12\x07pyt");
  expect_unknown("\x08\x07\x12\x02\x01\x02");
  expect_unknown("\x0a\x13\x0a\x05inp");
  expect_unknown("\x0a\x13\x0a\x05input\x12\x30short");
  expect_unknown("\x81");
  expect_unknown("\x81\xa6par");
  expect_unknown("\x81\xa2\x01\x02");
  expect_unknown(std::string(300, 'x'));
}

}  // namespace
}  // namespace ckpt_streamer::format
