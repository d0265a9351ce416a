"""Small modules that tests name by ``--model`` or pickle."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.body(features).relu())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32)
        self.output = nn.Linear(32, 40, bias=False)
        self.output.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.table(ids))


class Branchy(nn.Module):
    """Python control flow that depends on values: no tracer can be trusted with it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.layer(x)
        return -x


class Picture(nn.Module):
    """Works at any image size: nothing tells which."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.conv(image).mean(dim=(2, 3)))


class Digits(nn.Module):
    """Works at 8x8 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8 * 8 * 8, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.conv(pixels).relu().flatten(1))


class Translator(nn.Module):
    """torch's own Transformer with a causal mask, which it compares with another by value."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.transformer(source, target, tgt_mask=mask)


class FixedBatch(nn.Module):
    """Insists on one sample at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(1, 8))


class Many(nn.Module):
    """Two inputs (one of them optional), outputs in a nested structure with a hole in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, a: Tensor, b: Tensor, scale: Tensor | None = None) -> dict[str, object]:
        x = self.layer(a) + b
        if scale is not None:
            x = x * scale
        return {"sum": x, "nothing": None, "pair": (x.relu(), x.sum(dim=-1))}


def not_a_module() -> int:
    return 3


def broken() -> nn.Module:
    raise RuntimeError("needs a configuration")


number = 3
instance = Head()


def half() -> nn.Module:
    return Head().to(torch.bfloat16)
