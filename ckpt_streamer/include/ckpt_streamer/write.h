// Writes checkpoints tensor by tensor, within a bounded amount of physical
// memory: safetensors, or torch.save's format.
//
//   #include <ckpt_streamer/write.h>
//
//   ckpt_streamer::Stream source = ckpt_streamer::open("model.ckpt");
//   c10::Dict<std::string, at::Tensor> declared;
//   for (const auto& [name, tensor] : source) {  // reads none of them
//     declared.insert(name, at::empty_like(tensor, half_on_meta));
//   }
//   ckpt_streamer::CheckpointWriter writer =
//       ckpt_streamer::create("half.safetensors", declared);
//   source.reset();
//   for (const auto& [name, tensor] : source) {
//     writer.write(name, tensor);
//   }
//   writer.finish();
//
// with `half_on_meta = at::TensorOptions(at::kHalf).device(at::kMeta)`. Errors,
// linking and versions: see stream.h.
#pragma once

#include <ckpt_streamer/stream.h>

#include <utility>

namespace ckpt_streamer {
inline namespace v1 {

// What create() takes beside the path and the tensors.
struct CreateOptions {
  // The most of one tensor's file pages to hold in physical memory, where a
  // tensor in a mapped file is larger (see copy_() in stream.h). Positive.
  uint64_t memory_limit_bytes = kDefaultMemoryLimitBytes;
  // "safetensors" or "torch", which is torch.save's; else the end of the path
  // says it: .safetensors, or .pt, .pth, .bin or .ckpt.
  std::optional<std::string> format = std::nullopt;
  // Names and texts to keep beside the tensors: in the header of a safetensors
  // file, or as further entries of torch.save's dict.
  std::vector<std::pair<std::string, std::string>> metadata = {};
  // The most bytes of tensors in one file, with an index beside them; 0: all
  // are in one file. A tensor may be larger.
  uint64_t shard_size_bytes = 0;
  // Of tensors that overlap in memory, where the format cannot say so
  // (safetensors): "error", "copy" to write each, or "once" to write those that
  // are the same view once, under the first name, and to note the others in the
  // metadata. torch.save's format keeps them tied.
  std::string tied = "error";
  // Whether the kernel's cached copy of what is written is given back behind
  // the writer.
  bool drop_page_cache = false;
};

// A checkpoint on its way to the disk. Whatever is at its path stays there
// until finish(); a writer that goes without leaves nothing.
//
// A moved-from writer can be assigned to and destroyed. All other methods may
// be called from several threads; each call is atomic.
class CKPT_STREAMER_API CheckpointWriter {
 public:
  CheckpointWriter(CheckpointWriter&& other) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&& other) noexcept;
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  // As close(), if no one else has it (see to_ivalue()).
  ~CheckpointWriter();

  // Writes a tensor that was declared under the name: its elements, in the
  // declared dtype. Floating-point ones are converted, bit for bit as
  // Tensor::to() does it, in pieces of 4 MiB. In any order, each once; one that
  // shares its memory with another that is written already, and was declared
  // so, is passed over.
  // THROWS: c10::ValueError for a name that was not declared, another shape,
  // another dtype unless both are floating-point ones, a tensor that was
  // written before or is no view of the memory that it was declared as a view
  // of, and once the writer is finished or closed; c10::Error when the system
  // refuses, as for lack of space.
  void write(const std::string& name, const at::Tensor& tensor);

  // The size that the files will have. THROWS: c10::ValueError once the writer
  // is finished or closed.
  [[nodiscard]] uint64_t size_bytes() const;

  // Those of elements that are written so far.
  [[nodiscard]] uint64_t bytes_written() const;

  // Has the disk keep the files, and puts them in their places. Returns their
  // paths; of several, that of their index first.
  // THROWS: c10::ValueError, naming the first tensor, unless all are written,
  // and once the writer is finished or closed; c10::Error when the system
  // refuses. Whatever was at the path is there still.
  std::vector<std::string> finish();

  // Leaves nothing, unless it is finished. Idempotent.
  void close();

  // The same writer as an argument of TorchScript: a
  // torch.classes.ckpt_streamer.CheckpointWriter.
  [[nodiscard]] c10::IValue to_ivalue() const;

  // The writer that TorchScript or an op holds; both go on with it.
  // THROWS: c10::TypeError for any other value.
  [[nodiscard]] static CheckpointWriter from_ivalue(const c10::IValue& handle);

 private:
  friend struct WriterAccess;
  explicit CheckpointWriter(
      c10::intrusive_ptr<c10::intrusive_ptr_target> handle);

  c10::intrusive_ptr<c10::intrusive_ptr_target> handle_;
};

// Begins a checkpoint of tensors like these, in this order: of each, name,
// dtype, shape, and with which others it shares memory. Tensors on the meta
// device will do; nothing of them is read or kept. Several files are named
// after the path: model-00001-of-00002.safetensors and so on, and
// model.safetensors.index.json.
// THROWS: c10::ValueError for a limit of 0, a format or a `tied` that is not
// known, names that hold a NUL or are not UTF-8, and tensors that overlap where
// `tied` forbids it; c10::NotImplementedError for tensors that are sparse,
// quantized or nested, or of a dtype that the format does not have; c10::Error
// when the system refuses, or one of several files is there already.
[[nodiscard]] CKPT_STREAMER_API CheckpointWriter create(
    const std::string& path,
    const c10::Dict<std::string, at::Tensor>& tensors,
    const CreateOptions& options = {});

}  // namespace v1
}  // namespace ckpt_streamer
