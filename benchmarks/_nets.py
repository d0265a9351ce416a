"""Convolutional nets on the 8x8 digits: plain, one-dimensional, and some that INT8 finds hard.

Each builder gives logits [N, 10] from ``image`` float32, weights drawn from a fixed seed; all
have more than 100,000 parameters. The demo's own net, in ``models/digits.py``, is one more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["conv1d", "mobile", "plain", "pooled", "silu"]

SEED = 0


def _convolution(
    inputs: int, outputs: int, *, size: int = 3, stride: int = 1, groups: int = 1, one: bool = False
) -> list[nn.Module]:
    convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if one else (nn.Conv2d, nn.BatchNorm2d)
    return [
        convolution(
            inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False
        ),
        norm(outputs),
    ]


class _Residual(nn.Module):
    """Convolutions with an activation in between, and a skip around them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _SqueezeExcite(nn.Module):
    """Channels weighed by what the whole image holds (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(nn.functional.silu(self.squeeze(pooled))))


class _Net(nn.Module):
    """Features, their mean over all positions, and a linear classifier."""

    def __init__(self, features: nn.Sequential, channels: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image).flatten(2).mean(2))


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(SEED)
    return make().eval()


def plain() -> nn.Module:
    """3x3 convolutions, batch norm, ReLU; one stride, at the end."""

    def make() -> nn.Module:
        features = nn.Sequential(
            *_convolution(1, 32), nn.ReLU(),
            *_convolution(32, 64), nn.ReLU(),
            *_convolution(64, 64), nn.ReLU(),
            *_convolution(64, 120, stride=2), nn.ReLU(),
        )  # fmt: skip
        return _Net(features, 120)

    return _seeded(make)


def pooled() -> nn.Module:
    """As many weights as ``plain``, and half the arithmetic: max pooling twice, early."""

    def make() -> nn.Module:
        features = nn.Sequential(
            *_convolution(1, 32), nn.ReLU(),
            *_convolution(32, 64), nn.ReLU(), nn.MaxPool2d(2),
            *_convolution(64, 64), nn.ReLU(), nn.MaxPool2d(2),
            *_convolution(64, 120), nn.ReLU(),
        )  # fmt: skip
        return _Net(features, 120)

    return _seeded(make)


def conv1d() -> nn.Module:
    """The image as a signal [N, 1, 64], row after row: strided convolutions of width 5."""

    def make() -> nn.Module:
        features = nn.Sequential(
            *_convolution(1, 32, size=5, one=True), nn.ReLU(),
            *_convolution(32, 64, size=5, stride=2, one=True), nn.ReLU(),
            *_convolution(64, 96, size=5, stride=2, one=True), nn.ReLU(),
            *_convolution(96, 160, size=5, stride=2, one=True), nn.ReLU(),
        )  # fmt: skip
        return _Net(features, 160)

    return _seeded(make)


def silu() -> nn.Module:
    """Residual blocks with SiLU, which no integer kernel computes."""

    def stage(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        inner = [*_convolution(outputs, outputs), nn.SiLU(), *_convolution(outputs, outputs)]
        return [
            *_convolution(inputs, outputs, stride=stride),
            nn.SiLU(),
            _Residual(*inner),
            nn.SiLU(),
        ]

    def make() -> nn.Module:
        stages = [*stage(1, 32, 1), *stage(32, 64, 2), *stage(64, 96, 2)]
        return _Net(nn.Sequential(*stages), 96)

    return _seeded(make)


def mobile() -> nn.Module:
    """Inverted residuals: depthwise convolutions, SiLU, squeeze-and-excite (Tan and Le 2019)."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        wide = 4 * inputs
        layers = [
            *_convolution(inputs, wide, size=1), nn.SiLU(),
            *_convolution(wide, wide, stride=stride, groups=wide), nn.SiLU(),
            _SqueezeExcite(wide, inputs // 4),
            *_convolution(wide, outputs, size=1),
        ]  # fmt: skip
        return _Residual(*layers) if inputs == outputs else nn.Sequential(*layers)

    def make() -> nn.Module:
        features = nn.Sequential(
            *_convolution(1, 32), nn.SiLU(),
            block(32, 32, 1), block(32, 48, 2), block(48, 48, 1), block(48, 80, 2),
            block(80, 80, 1),
            *_convolution(80, 160, size=1), nn.SiLU(),
        )  # fmt: skip
        return _Net(features, 160)

    return _seeded(make)
