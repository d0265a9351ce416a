"""The modules that some published weights belong to, as their packages define them."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["crepe_tiny", "voice_encoder"]


class VoiceEncoder(nn.Module):
    """Resemblyzer: spectrogram [batch, frames, 40] to a unit vector [batch, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.lstm(mels)
        raw = torch.relu(self.linear(hidden[-1]))
        return raw / torch.linalg.vector_norm(raw, dim=1, keepdim=True)


class Crepe(nn.Module):
    """torchcrepe, tiny: frames [batch, 1024] to pitch bins [batch, 360]."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 128, 16, 16, 16, 32, 64]
        for n in range(1, 7):
            size, stride = ((512, 1), (4, 1)) if n == 1 else ((64, 1), (1, 1))
            setattr(self, f"conv{n}", nn.Conv2d(widths[n - 1], widths[n], size, stride))
            setattr(self, f"conv{n}_BN", nn.BatchNorm2d(widths[n], eps=0.0010000000474974513))
        self.classifier = nn.Linear(256, 360)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames[:, None, :, None]
        for n in range(1, 7):
            edges = (0, 0, 254, 254) if n == 1 else (0, 0, 31, 32)
            x = torch.relu(getattr(self, f"conv{n}")(nn.functional.pad(x, edges)))
            x = nn.functional.max_pool2d(getattr(self, f"conv{n}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))


def voice_encoder() -> nn.Module:
    return VoiceEncoder()


def crepe_tiny() -> nn.Module:
    return Crepe()
