#include "write/file_layout.h"

#include "write/safetensors_layout.h"
#include "write/zip_layout.h"

namespace ckpt_streamer::write {

std::unique_ptr<FileLayout> make_layout(
    const std::string& path,
    FileFormat format,
    const PlannedFile& file,
    Opaque opaque) {
  if (format == FileFormat::kSafetensors) {
    return std::make_unique<SafetensorsLayout>(path, file);
  }
  return std::make_unique<ZipLayout>(file, write_pickle(path, file, opaque));
}

}  // namespace ckpt_streamer::write
