// The library's whole face to torch: schemas and nothing else.
#include <torch/custom_class.h>
#include <torch/library.h>

#include <string>
#include <utility>

#include "ops/checkpoint_handle.h"
#include "ops/copy_under_limit.h"
#include "ops/default_limit.h"
#include "ops/jit_load.h"
#include "ops/load_into.h"
#include "ops/memory_budget.h"
#include "ops/slot_list.h"
#include "ops/stream_handle.h"
#include "ops/window_handle.h"
#include "ops/writer_handle.h"
#include "os/residency.h"

namespace ckpt_streamer::ops {
namespace {

// Pickling and deep-copying end here.
template <typename Handle>
void refuse_pickling(torch::class_<Handle>& handle_class) {
  constexpr const char* kText =
      "a stream cannot be pickled, copied or saved in a module: it stands for "
      "this process's memory; make a new one where it is needed, inside a "
      "method";
  handle_class.def_pickle(
      [](const c10::intrusive_ptr<Handle>&) -> int64_t {
        C10_THROW_ERROR(NotImplementedError, kText);
      },
      [](int64_t) -> c10::intrusive_ptr<Handle> {
        C10_THROW_ERROR(NotImplementedError, kText);
      });
}

// Defines an op that reads files or makes a stream. For TorchScript it has side
// effects: no call of it is left out, made one with another, or moved. It is
// not made of other ops (CompositeExplicitAutograd): under a tracer it is seen
// itself, and refused (ckpt_streamer/_ops.py).
template <typename Function>
void define(torch::Library& library, const char* schema, Function&& function) {
  const std::string text(schema);
  library.def(torch::schema(schema, c10::AliasAnalysisKind::CONSERVATIVE));
  library.impl(
      text.substr(0, text.find('(')).c_str(),
      torch::dispatch(
          c10::DispatchKey::CompositeExplicitAutograd,
          std::forward<Function>(function)));
}

}  // namespace

TORCH_LIBRARY(ckpt_streamer, library) {
  library.class_<MemoryBudget>("MemoryBudget")
      .def(torch::init<int64_t>())
      .def("limit_bytes", &MemoryBudget::limit_bytes)
      .def("bytes_held", &MemoryBudget::bytes_held)
      .def_pickle(
          [](const c10::intrusive_ptr<MemoryBudget>& budget) {
            return budget->limit_bytes();
          },
          [](int64_t limit_bytes) {
            return c10::make_intrusive<MemoryBudget>(limit_bytes);
          });

  auto budget_share =
      library.class_<BudgetShare>("_BudgetShare")
          .def(torch::init<const c10::intrusive_ptr<MemoryBudget>&, int64_t>())
          .def("bytes", &BudgetShare::bytes)
          .def("close", &BudgetShare::close);
  refuse_pickling(budget_share);

  auto stream_handle =
      library.class_<StreamHandle>("StreamHandle")
          .def("has_next", &StreamHandle::has_next)
          .def("next", &StreamHandle::next)
          .def("tensor", &StreamHandle::tensor)
          .def("slice", &StreamHandle::slice)
          .def("release", &StreamHandle::release)
          .def("reset", &StreamHandle::reset)
          .def("__len__", &StreamHandle::len)
          .def("bytes_streamed", &StreamHandle::bytes_streamed)
          .def("bytes_evicted", &StreamHandle::bytes_evicted)
          .def("bytes_resident", &StreamHandle::bytes_resident)
          .def("peak_bytes_resident", &StreamHandle::peak_bytes_resident)
          .def("stats", &StreamHandle::stats)
          .def("not_held", &StreamHandle::not_held)
          .def("notes", &StreamHandle::notes);
  refuse_pickling(stream_handle);

  auto lot = library.class_<Lot>("_Lot");
  refuse_pickling(lot);

  auto window_handle =
      library.class_<WindowHandle>("_WindowHandle")
          .def("add", &WindowHandle::add)
          .def("plan", &WindowHandle::plan)
          .def("order", &WindowHandle::order)
          .def("window_ends", &WindowHandle::window_ends)
          .def("enter", &WindowHandle::enter)
          .def("admit", &WindowHandle::admit)
          .def("release", &WindowHandle::release)
          .def("close", &WindowHandle::close)
          .def("unmapped_bytes", &WindowHandle::unmapped_bytes)
          .def("covered_bytes", &WindowHandle::covered_bytes)
          .def("convert", &WindowHandle::convert)
          .def("check_unchanged", &WindowHandle::check_unchanged)
          .def("stats", &WindowHandle::stats)
          .def("not_held", &WindowHandle::not_held)
          .def("notes", &WindowHandle::notes);
  refuse_pickling(window_handle);

  auto slot_list = library.class_<SlotList>("_Slots")
                       .def("__len__", &SlotList::len)
                       .def("names", &SlotList::names)
                       .def("keys", &SlotList::keys)
                       .def("containers", &SlotList::containers)
                       .def("describe", &SlotList::describe)
                       .def("tensors", &SlotList::tensors)
                       .def("converted", &SlotList::converted)
                       .def("matching", &SlotList::matching)
                       .def("at", &SlotList::at)
                       .def("windows", &SlotList::windows);
  refuse_pickling(slot_list);

  auto checkpoint = library.class_<CheckpointHandle>("_Checkpoint")
                        .def("paths", &CheckpointHandle::paths)
                        .def("texts", &CheckpointHandle::texts)
                        .def("storage_bytes", &CheckpointHandle::storage_bytes)
                        .def("root", &CheckpointHandle::root)
                        .def("values", &CheckpointHandle::values)
                        .def("items", &CheckpointHandle::items)
                        .def("entry_values", &CheckpointHandle::entry_values)
                        .def("children", &CheckpointHandle::children)
                        .def("kinds", &CheckpointHandle::kinds)
                        .def("keys", &CheckpointHandle::keys)
                        .def("parts", &CheckpointHandle::parts)
                        .def("tensor", &CheckpointHandle::tensor)
                        .def("slice", &CheckpointHandle::slice)
                        .def("leaves", &CheckpointHandle::leaves)
                        .def("slots", &CheckpointHandle::slots)
                        .def("slots_under", &CheckpointHandle::slots_under)
                        .def("lookups", &CheckpointHandle::lookups);
  refuse_pickling(checkpoint);

  auto writer = library.class_<WriterHandle>("CheckpointWriter")
                    .def("write", &WriterHandle::write)
                    .def("_write_from", &WriterHandle::write_from)
                    .def("size_bytes", &WriterHandle::size_bytes)
                    .def("bytes_written", &WriterHandle::bytes_written)
                    .def("finish", &WriterHandle::finish)
                    .def("close", &WriterHandle::close);
  refuse_pickling(writer);

  // A checkpoint file, or the index of a sharded one, read without Python and
  // without executing anything in it. With a dtype, floating-point tensors are
  // converted to it on their way (see ops/conversion.h). With verify, records
  // are held against their checksums before a tensor of them is returned. With
  // patterns, only tensors whose names match one are streamed. With
  // drop_page_cache, the limit is for the kernel's copy as well. With a budget,
  // it is the stream's share of that, memory_limit_bytes at most.
  define(
      library,
      "open(str path, int memory_limit_bytes, *, ScalarType? dtype=None, "
      "bool verify=False, str[]? select=None, bool drop_page_cache=False, "
      "__torch__.torch.classes.ckpt_streamer.MemoryBudget? budget=None) -> "
      "__torch__.torch.classes.ckpt_streamer.StreamHandle",
      open);

  // Several files as one stream, in that order.
  define(
      library,
      "open.paths(str[] paths, int memory_limit_bytes, *, "
      "ScalarType? dtype=None, bool verify=False, str[]? select=None, "
      "bool drop_page_cache=False, "
      "__torch__.torch.classes.ckpt_streamer.MemoryBudget? budget=None) -> "
      "__torch__.torch.classes.ckpt_streamer.StreamHandle",
      open_files);

  // Tensors in memory; those that are views of a private file mapping are
  // evicted behind the reader.
  define(
      library,
      "stream(Dict(str, Tensor) tensors, int memory_limit_bytes, *, "
      "ScalarType? dtype=None, bool drop_page_cache=False, "
      "__torch__.torch.classes.ckpt_streamer.MemoryBudget? budget=None) -> "
      "__torch__.torch.classes.ckpt_streamer.StreamHandle",
      stream_tensors);

  // Tensor.copy_; a source larger than the limit is read in pieces, and evicted
  // behind. Made of other ops (CompositeImplicitAutograd): autograd, modes and
  // compilers see copy_.
  library.def(
      "copy_(Tensor(a!) destination, Tensor source, int memory_limit_bytes, *, "
      "bool drop_page_cache=False) -> Tensor(a!)",
      copy_);

  // The limit for those who name none, from the memory that is available at the
  // moment: no pure function of its arguments.
  define(
      library,
      "default_memory_limit_bytes() -> int",
      default_memory_limit_bytes);
  define(
      library,
      "_default_memory_limit() -> (int, str)",
      explained_default_memory_limit);
  define(library, "_fault_extent_bytes() -> int", [] {
    return static_cast<int64_t>(os::fault_extent_bytes());
  });

  // A file's tensors into tensors that are there already (see ops/load_into.h).
  // Returns the names that the file does not have, and those that only it has.
  define(
      library,
      "load_into(Dict(str, Tensor) parameters, str path, "
      "int memory_limit_bytes, *, str? prefix=None, bool strict=False, "
      "bool verify=False, bool drop_page_cache=False, "
      "__torch__.torch.classes.ckpt_streamer.MemoryBudget? budget=None) -> "
      "(str[] missing, str[] unexpected)",
      load_into);
  define(
      library,
      "load_into.paths(Dict(str, Tensor) parameters, str[] paths, "
      "int memory_limit_bytes, *, str? prefix=None, bool strict=False, "
      "bool verify=False, bool drop_page_cache=False, "
      "__torch__.torch.classes.ckpt_streamer.MemoryBudget? budget=None) -> "
      "(str[] missing, str[] unexpected)",
      load_files_into);
  // A checkpoint to be written, tensor by tensor, under the names and in the
  // dtypes and shapes of `tensors`, of which nothing is read. The format is
  // "safetensors" or "torch"; without one, the path's end says it. With a size
  // of shards, several files and their index. Tensors that share memory, where
  // the format cannot say so: "error", "copy" or "once" (see write/plan.h).
  define(
      library,
      "create(str path, Dict(str, Tensor) tensors, int memory_limit_bytes, "
      "*, "
      "str? format=None, Dict(str, str)? metadata=None, "
      "int shard_size_bytes=0, str tied=\"error\", bool drop_page_cache=False) "
      "-> "
      "__torch__.torch.classes.ckpt_streamer.CheckpointWriter",
      create);

  define(
      library,
      "_without_data(__torch__.torch.classes.ckpt_streamer._Slots slots, "
      "str[] names, str path) -> Tensor[]",
      without_data);

  define(
      library,
      "_create(__torch__.torch.classes.ckpt_streamer._Slots slots, "
      "str[] names, Tensor[]? templates, bool keeps_tree, str path, "
      "int memory_limit_bytes, str? format, ScalarType? dtype, "
      "Dict(str, str) metadata, int shard_size_bytes, str tied, str "
      "opaque, "
      "bool drop_page_cache) -> "
      "__torch__.torch.classes.ckpt_streamer.CheckpointWriter",
      create_from_slots);

  define(
      library,
      "_jit_load(str path, Device? device, bool verify) -> Any",
      [](const std::string& path,
         std::optional<c10::Device> device,
         bool verify) -> c10::IValue {
        return jit_load(path, device, verify)._ivalue();
      });

  library.def(
      "_windows(int memory_limit_bytes, bool drop_page_cache, "
      "__torch__.torch.classes.ckpt_streamer.MemoryBudget? budget) -> "
      "__torch__.torch.classes.ckpt_streamer._WindowHandle",
      make_windows);

  library.def(
      "_open(str[] paths, bool is_list, int memory_limit_bytes, "
      "ScalarType? dtype, bool verify, bool drop_page_cache, "
      "__torch__.torch.classes.ckpt_streamer.MemoryBudget? budget) -> "
      "__torch__.torch.classes.ckpt_streamer._Checkpoint",
      open_checkpoint);
}

}  // namespace ckpt_streamer::ops
