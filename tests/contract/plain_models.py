"""The plain torch models of the contract table: code that a user would have beside the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "AudioNet",
    "DepthwiseNet",
    "GruClassifier",
    "LstmTagger",
    "Mlp",
    "TiedLanguageModel",
    "TransformerClassifier",
    "TwoTowers",
    "UNet",
]

VOCABULARY = 512


class Mlp(nn.Module):
    """Three linear layers with batch normalisation's plainer cousin between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.LayerNorm(256), nn.Linear(256, 256), nn.GELU()
        )
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class LstmTagger(nn.Module):
    """Bidirectional two-layer LSTM over embedded tokens; one label a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 64)
        self.lstm = nn.LSTM(64, 96, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(192, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(tokens))
        return self.head(hidden)


class GruClassifier(nn.Module):
    """GRU over feature frames, classified from the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(64, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(x)
        return self.head(last[-1])


class TransformerClassifier(nn.Module):
    """torch's own TransformerEncoder with learned positions, mean pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 128)
        self.position = nn.Parameter(torch.randn(1, 64, 128) * 0.02)
        layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(128, 10)
        for parameter in self.encoder.parameters():  # its layers begin as copies of one another
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position[:, : tokens.shape[1]]
        return self.head(self.encoder(x).mean(dim=1))


def _double_conv(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Two levels down and up again, upsampling by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = _double_conv(3, 24)
        self.down2 = _double_conv(24, 48)
        self.middle = _double_conv(48, 96)
        self.up2 = nn.ConvTranspose2d(96, 48, 2, stride=2)
        self.merge2 = _double_conv(96, 48)
        self.up1 = nn.ConvTranspose2d(48, 24, 2, stride=2)
        self.merge1 = _double_conv(48, 24)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down1(image)
        second = self.down2(F.max_pool2d(first, 2))
        deep = self.middle(F.max_pool2d(second, 2))
        x = self.merge2(torch.cat([self.up2(deep), second], dim=1))
        x = self.merge1(torch.cat([self.up1(x), first], dim=1))
        return self.head(x)


class AudioNet(nn.Module):
    """Strided one-dimensional convolutions over a waveform, global average, linear head."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out, kernel, stride in ((1, 64, 32, 4), (64, 96, 8, 4), (96, 128, 8, 4)):
            layers += [
                nn.Conv1d(channels, out, kernel, stride, padding=kernel // 2, bias=False),
                nn.BatchNorm1d(out),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(128, 12)

    def forward(self, waveform: Tensor) -> Tensor:
        return self.head(self.features(waveform).mean(dim=-1))


def _separable(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )


class DepthwiseNet(nn.Module):
    """Depthwise-separable convolutions, as MobileNet has them, with a hard-swish head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        )
        self.blocks = nn.Sequential(
            _separable(32, 64, 1), _separable(64, 128, 2), _separable(128, 256, 2)
        )
        self.head = nn.Sequential(nn.Linear(256, 256), nn.Hardswish(), nn.Linear(256, 10))

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.stem(image))
        return self.head(x.mean(dim=(2, 3)))


class TwoTowers(nn.Module):
    """Two inputs, two named outputs: a score and a joint embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128))
        self.item = nn.Sequential(nn.Linear(96, 256), nn.ReLU(), nn.Linear(256, 128))
        self.joint = nn.Linear(256, 64)

    def forward(self, user: Tensor, item: Tensor) -> dict[str, Tensor]:
        a, b = self.user(user), self.item(item)
        return {
            "score": (a * b).sum(dim=-1, keepdim=True),
            "embedding": self.joint(torch.cat([a, b], dim=-1)),
        }


class TiedLanguageModel(nn.Module):
    """A language model whose output layer is its embedding table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 128)
        self.mix = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128))
        self.norm = nn.LayerNorm(128)
        self.output = nn.Linear(128, VOCABULARY, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = self.norm(x + self.mix(x.cumsum(dim=1) / 4))
        return self.output(x)
