"""A transformer language model of plain torch.nn modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    name: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    context: int = 1024


# 1.04 GiB in f32. The largest tensor, the embedding, has 96 MiB.
DEMO = Config("demo", vocabulary=24_576, width=1024, layers=20, heads=16)
# Of the same structure, to rehearse with: 34 MiB.
REHEARSAL = Config("demo-rehearsal", vocabulary=8192, width=512, layers=1, heads=8)


class LanguageModel(nn.Module):
    """Pre-norm, causal, with the embedding tied to the head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer,
            config.layers,
            norm=nn.LayerNorm(config.width),
            enable_nested_tensor=False,
        )
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.embedding(tokens) + self.positions.weight[:length]
        hidden = self.layers(hidden, mask=mask, is_causal=True)
        return cast(Tensor, self.head(hidden))


def empty_bfloat16_model(config: Config) -> LanguageModel:
    """Return a model whose weights have no memory until they are written."""
    with torch.device("meta"):
        model = LanguageModel(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.head.weight = model.embedding.weight  # to_empty() unties them
    return model
