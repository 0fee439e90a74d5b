// The C library's heap, as far as it decides what a caller's own code costs
// between two calls of ours.
#pragma once

namespace ckpt_streamer::os {

// To be called last by whatever made many small blocks or freed them, before
// the caller goes on to make large ones, one after the other.
//
// glibc cuts an aligned block, as of a tensor, out of a larger one; both pieces
// that are left go to caches of the calling thread, of seven blocks of a size
// (malloc/malloc.c, _int_memalign() and tcache). In there, they join no
// neighbour: the block that was cut out is too small for the next of its size
// once it is freed, and that one is cut out of memory that is not mapped yet.
// So whoever finds these caches empty sees the next seven or more results of,
// say, Tensor.to() in fresh memory each. This fills them, and not with what was
// cut off before: that joins its neighbours.
//
// Other C libraries' heaps: without effect. Cost: two microseconds.
void fill_small_block_caches() noexcept;

}  // namespace ckpt_streamer::os
