// The names of what is not read, so that an error can say what a file is.
//
// A guess from a few bytes: it only ever words an error.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/byte_source.h"
#include "base/source_opener.h"
#include "format/zip_directory.h"

namespace ckpt_streamer::format {

// What every such error says was expected.
inline constexpr const char* kExpectedFile =
    "a torch.save, TorchScript or safetensors file";

// How many bytes of a file's begin recognition looks at.
inline constexpr uint64_t kRecognizedHeadBytes = 4096;

// "a GGUF file"; nothing when the bytes are of no known kind.
// REQUIRES: `head` is the file's first kRecognizedHeadBytes, or all of it.
// Cost: one small read at the file's end.
[[nodiscard]] std::optional<std::string> recognize(
    const ByteSource& source,
    std::string_view head);

// The same for a zip file, by its records. REQUIRES: there are some.
[[nodiscard]] std::optional<std::string> recognize_zip(
    const ZipDirectory& directory);

// THROWS: Unsupported for a URL ("https://...", "hf://...").
void check_is_local(const std::string& path);

// THROWS: Unsupported for the directory of a known kind of checkpoint, which
// is named; else InvalidArgument, with the file in it that can be opened
// instead, if there is one.
[[noreturn]] void fail_directory(
    const std::string& path,
    const SourceOpener& opener);

// THROWS: Unsupported, `is <kind>, which is not read; expected
// <kExpectedFile>`.
[[noreturn]] void fail_known(const std::string& path, std::string_view kind);

}  // namespace ckpt_streamer::format
