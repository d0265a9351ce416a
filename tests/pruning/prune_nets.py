"""Small nets whose channels depend on one another in every way that pruning must respect."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.core import InputSpec
from edgeopt.modules.model import TorchModel

__all__ = ["NETS", "Attention", "Gated", "Shuffled", "image", "tokens"]


def image(module: nn.Module, *shape: int) -> TorchModel:
    """A model with one float input ``x`` [batch, *shape], every batch norm with a history."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator) * 0.1
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    spec = InputSpec("x", "float32", ("batch", *shape))
    return TorchModel(module.eval(), (spec,), {"x": x}, positional=True)


def tokens(module: nn.Module, **fixed: object) -> TorchModel:
    """A model of transformers: ids below 50 and a mask, 7 tokens long."""
    names = ("input_ids", "attention_mask")
    specs = tuple(InputSpec(name, "int64", ("batch", "tokens")) for name in names)
    ids = np.random.default_rng(0).integers(0, 50, (2, 7))
    example = {"input_ids": ids, "attention_mask": np.ones((2, 7), np.int64)}
    return TorchModel(module.eval(), specs, example, fixed=fixed)


class Dense(nn.Module):
    """Every layer reads all before it (Huang et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 4, 3, padding=1)
        self.n = nn.BatchNorm2d(12)
        self.c = nn.Conv2d(12, 4, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat([x, self.b(x.relu())], 1)
        x = torch.cat([x, self.c(self.n(x).relu())], 1)
        return self.head(x.mean((2, 3)))


class Inverted(nn.Module):
    """MobileNet's block: expand, depthwise, project, with a residual (Sandler et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.up, self.n1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.deep, self.n2 = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24)
        self.down = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.n2(self.deep(self.n1(self.up(x)).relu())).relu()
        return self.head((x + self.down(y)).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution, a group norm, and a linear layer that reads a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.g = nn.Conv2d(16, 8, 3, groups=4, bias=False)
        self.n = nn.GroupNorm(2, 8)
        self.c = nn.Linear(8 * 36, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.n(self.g(self.a(x).relu())).flatten(1)).relu())


class Upward(nn.Module):
    """Transposed convolutions, grouped too, instance norm and PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.t = nn.ConvTranspose2d(8, 6, 2)
        self.act, self.norm = nn.PReLU(6), nn.InstanceNorm2d(6, affine=True)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.act(self.t(self.a(x)))))


class Gated(nn.Module):
    """One half of the channels multiplies the other: channel i goes with channel i + n."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.n(self.a(x)).chunk(2, 1)
        return self.head(self.b(one * other.sigmoid()).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.state = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.state(self.a(x).tanh())[0][:, -1])


class RootMeanSquare(nn.Module):
    """A norm of one's own, as language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Tied(nn.Module):
    """Tokens in and out through one table, with a norm between; a parameter is added to all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.place = nn.Parameter(torch.randn(1, 5, 16) * 0.1)
        self.norm = RootMeanSquare(16)
        self.mix = nn.Linear(16, 16)
        self.out = nn.Linear(16, 20, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.table((x.abs() * 6).long().clamp_max(19)) + self.place
        return self.out(y + self.mix(self.norm(y)))


class Shuffled(nn.Module):
    """A channel shuffle: it runs with any even width, and mixes up what was cut blindly."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 6, 1, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.b(y).mean((2, 3)))


class Attention(nn.Module):
    """A plain block: q, k, v, o and a head count. ``own`` keeps its width as an attribute."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.num_heads, self.dim, self.own = 4, 16, own
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        width = self.dim if self.own else width
        shape = (n, t, self.num_heads, width // self.num_heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return self.head(self.o(mixed.transpose(1, 2).reshape(n, t, width)).mean(1))


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(8, 16), stack, nn.Linear(16, 3))


#: Name -> how to build it, and what one sample of its input is like.
NETS = {
    "dense": (Dense, (3, 8, 8)),
    "depthwise": (Inverted, (3, 8, 8)),
    "grouped": (Grouped, (3, 8, 8)),
    "transposed": (Upward, (3, 8, 8)),
    "gated": (Gated, (3, 8, 8)),
    "recurrent": (Recurrent, (5, 8)),
    "tied": (Tied, (5,)),
    "encoder": (_encoder, (5, 8)),
    "attention": (lambda: Attention(True), (5, 16)),
}
