"""A small net that tells bright rows from bright columns, as a file, its code and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.second = nn.Conv2d(24, 24, 3, padding=1, groups=groups)
        self.head = nn.Linear(24, 3)

    def forward(self, image):
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(x + self.second(x))
        return self.head(x.mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net().eval()

def unseeded():
    return Net().eval()

def no_samples():
    return iter(())
"""


def bars(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of a bright row, a bright column or neither, and which it is."""
    rng = np.random.default_rng(0)
    images = rng.normal(scale=0.3, size=(count, 1, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 3, count)
    for image, label in zip(images, labels, strict=True):
        at = rng.integers(0, 8)
        if label == 0:
            image[0, at] += 2
        elif label == 1:
            image[0, :, at] += 2
    return images, labels


def written(folder: Path) -> Path:
    """``model.pt`` (weights of ``barcode:build``), ``data.npz`` and ``test.npz`` in ``folder``."""
    import torch

    (folder / "barcode.py").write_text(CODE)
    images, labels = bars(96)
    np.savez(folder / "data.npz", image=images[:64], label=labels[:64])
    np.savez(folder / "test.npz", image=images[64:], label=labels[64:])
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    torch.save(scope["build"]().state_dict(), folder / "model.pt")
    return folder
