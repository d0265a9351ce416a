"""A small convolutional network on scikit-learn's digits: real data, no download, seconds.

    python models/digits.py --out demo

trains it and writes ``model.pt`` (a state dict, which can be opened without running any code),
``digits-train.npz`` (what it was trained on, with labels), ``digits.npz`` (images that training
never saw, for calibration and proof) and ``digits-test.npz`` (others again, with their labels).
The accuracy of any file made from it:

    python models/digits.py --score demo/model.onnx demo/digits-test.npz
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Net", "build", "digits", "score", "train"]

SEED = 0
TRAIN, CALIBRATION = 1097, 300  # the remaining 400 images are for testing


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
    """``image`` float32 [N, 1, 8, 8] in 0..1 -> logits [N, 10]; about 0.4 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_stage(1, 32, 1), _stage(32, 64, 1), _stage(64, 112, 2))
        self.classifier = nn.Linear(112, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image).mean((2, 3)))


def build() -> Net:
    """The network in evaluation mode, weights drawn from a fixed seed."""
    torch.manual_seed(SEED)
    return Net().eval()


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All 1,797 images [N, 1, 8, 8] in 0..1 and their labels, in a fixed shuffled order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return images[order], labels[order].astype(np.int64)


def train(
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    epochs: int = 4,
    batch: int = 64,
    net: nn.Module | None = None,
) -> nn.Module:
    """Adam with a one-cycle rate; the same data gives the same weights on the same machine.

    ``net`` is trained in place; without one, :func:`build` makes it.
    """
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


def score(model: Path, data: Path) -> float:
    """Share of right answers that an ONNX file gives on ``image`` and ``label`` of an .npz."""
    import onnxruntime

    arrays = np.load(data)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: arrays["image"]})[0]
    return float((logits.argmax(-1) == arrays["label"]).mean())


def _make(out: Path) -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)  # the same sums on every machine; more make this net no faster
    images, labels = digits()
    calibration, test = slice(TRAIN, TRAIN + CALIBRATION), slice(TRAIN + CALIBRATION, None)
    net = train(images[:TRAIN], labels[:TRAIN])
    with torch.inference_mode():
        right = net(torch.from_numpy(images[test])).argmax(-1).numpy() == labels[test]
    out.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), out / "model.pt")
    np.savez(out / "digits-train.npz", image=images[:TRAIN], label=labels[:TRAIN])
    np.savez(out / "digits.npz", image=images[calibration])
    np.savez(out / "digits-test.npz", image=images[test], label=labels[test])
    parameters = sum(p.numel() for p in net.parameters())
    print(
        f"trained {parameters:,} parameters on {TRAIN:,} images in "
        f"{time.perf_counter() - began:.1f} s: {right.mean():.2%} of {right.size} unseen "
        f"digits right; wrote model.pt and its data to {out}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="train, and write the files to this folder")
    parser.add_argument("--score", type=Path, nargs=2, metavar=("MODEL.onnx", "DATA.npz"))
    options = parser.parse_args()
    if options.out:
        _make(options.out)
    if options.score:
        print(f"{options.score[0]}: {score(*options.score):.2%} of the unseen digits right")
    if not (options.out or options.score):
        parser.print_help()


if __name__ == "__main__":
    main()
