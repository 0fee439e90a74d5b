"""Stream PyTorch checkpoints through a bounded amount of physical memory."""

from ckpt_streamer._apply import apply_state_dict
from ckpt_streamer._ops import library_path
from ckpt_streamer._stream import Stream, stream

__all__ = ["Stream", "apply_state_dict", "library_path", "stream"]
