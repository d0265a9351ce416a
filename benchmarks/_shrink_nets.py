"""Teachers and students of ``benchmarks/shrink.py``, as ``--model`` and ``--student`` name them."""

from __future__ import annotations

import torch
from models import digits, mnist
from torch import Tensor, nn

__all__ = ["digits_teacher", "mnist_teacher", "small"]


def digits_teacher() -> nn.Module:
    return digits.Net().eval()


def mnist_teacher() -> nn.Module:
    return mnist.Net().eval()


class Small(nn.Module):
    """The digits network without its blocks: a convolution a stage, ``widths`` channels wide."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for width, stride in zip(widths, (1, 1, 2), strict=True):
            layers += [
                nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image).mean((2, 3)))


def small(seed: int, widths: tuple[int, int, int]) -> nn.Module:
    """A student with weights drawn from ``seed``."""
    torch.manual_seed(seed)
    return Small(widths).eval()
