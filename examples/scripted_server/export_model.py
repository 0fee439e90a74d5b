"""Saves a scripted model that loads its weights itself, and a checkpoint for it.

python export_model.py model.pt weights.ckpt
"""

import sys

import torch

import ckpt_streamer


def make_model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
    )


archive, checkpoint = sys.argv[1:]
model = make_model()
torch.jit.script(ckpt_streamer.add_load_method(model)).save(archive)

trained = make_model()
torch.save({"state_dict": trained.state_dict(), "epoch": 3}, checkpoint)
