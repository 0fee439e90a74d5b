"""Stream PyTorch checkpoints through a bounded amount of physical memory."""

from ckpt_streamer._apply import apply_state_dict
from ckpt_streamer._budget import MemoryBudget
from ckpt_streamer._checkpoint import Checkpoint, open
from ckpt_streamer._convert import convert
from ckpt_streamer._cpp import cmake_prefix_path, include_paths, library_paths
from ckpt_streamer._jit import jit_load
from ckpt_streamer._op_types import Ops, StreamHandle
from ckpt_streamer._ops import library_path, ops
from ckpt_streamer._scripting import add_load_method
from ckpt_streamer._stats import StreamStats
from ckpt_streamer._stream import Stream, stream
from ckpt_streamer._tree import OpaqueArray, OpaqueGlobal, OpaqueObject
from ckpt_streamer._writer import CheckpointWriter, create

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "MemoryBudget",
    "OpaqueArray",
    "OpaqueGlobal",
    "OpaqueObject",
    "Ops",
    "Stream",
    "StreamHandle",
    "StreamStats",
    "add_load_method",
    "apply_state_dict",
    "cmake_prefix_path",
    "convert",
    "create",
    "include_paths",
    "jit_load",
    "library_path",
    "library_paths",
    "open",
    "ops",
    "stream",
]
