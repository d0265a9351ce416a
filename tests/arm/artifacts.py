"""What the emulated CPUs are asked: models quantized for any machine, and every stored form alone.

Each is NAME.onnx with NAME.npz beside it, the inputs; and a reference in float64 that no runtime
computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from models import digits
from numpy.typing import NDArray
from tests.contract.plain_models import VOCABULARY, Mlp, TransformerClassifier
from tests.graphs.nets import arrays
from tests.graphs.test_forms import product, quantize, table

import edgeopt
from edgeopt.graphs.forms import Placing

__all__ = ["FORMS", "MODELS", "Asked", "make_form", "make_model"]

Array = NDArray[Any]
#: Samples that plans are made and proven on, and those that the CPUs answer.
SAMPLES, ASKED = 64, 16


@dataclass(frozen=True)
class Asked:
    """An artifact on disk, and what its float model answers in float64."""

    path: Path
    reference: Array


def _digits() -> tuple[torch.nn.Module, dict[str, Array]]:
    images, labels = digits.digits()
    net = digits.train(images[: digits.TRAIN], labels[: digits.TRAIN], epochs=1)
    return net, {"image": images[digits.TRAIN : digits.TRAIN + SAMPLES]}


def _mlp() -> tuple[torch.nn.Module, dict[str, Array]]:
    x = np.random.default_rng(1).standard_normal((SAMPLES, 64)).astype(np.float32)
    return Mlp().eval(), {"x": x}


def _transformer() -> tuple[torch.nn.Module, dict[str, Array]]:
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (SAMPLES, 16))
    return TransformerClassifier().eval(), {"tokens": tokens}


_MAKERS: dict[str, tuple[str, Callable[[], tuple[torch.nn.Module, dict[str, Array]]]]] = {
    "digits": ("models.digits:build", _digits),
    "mlp": ("tests.contract.plain_models:Mlp", _mlp),
    "transformer": ("tests.contract.plain_models:TransformerClassifier", _transformer),
}

#: What a user would make for a machine that is not at hand.
MODELS = tuple(f"{name}-{kind}" for name in _MAKERS for kind in ("fp16", "int8", "int4"))


def make_model(name: str, folder: Path) -> list[Asked]:
    """A trained or drawn model, exported in FP16 and quantized to 8 and 4 bits for any target."""
    code, maker = _MAKERS[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, feed = maker()
    state, samples, plain = (folder / f"{name}{end}" for end in (".pt", "-all.npz", "-fp32.tmp"))
    torch.save(net.state_dict(), state)
    np.savez(samples, **feed)
    # Slow machines under load: whether a file is slower is not what is asked here.
    common = {"data": str(samples), "force": True}
    edgeopt.export(state, plain, model=code, **common)
    made = {
        f"{name}-fp16": edgeopt.export(plain, folder / f"{name}-fp16.onnx", half=True, **common)
    }
    for bits in (8, 4):
        made[f"{name}-int{bits}"] = edgeopt.quantize(
            plain, folder / f"{name}-int{bits}.onnx", bits=bits, target="portable", **common
        )
    asked = {key: array[:ASKED] for key, array in feed.items()}
    with torch.inference_mode():
        inputs = [torch.from_numpy(a) for a in asked.values()]
        doubles = [t.double() if t.is_floating_point() else t for t in inputs]
        reference = net.double()(*doubles).numpy()
    for path in (folder / f"{key}.npz" for key in made):
        np.savez(path, **asked)
    return [Asked(folder / f"{key}.onnx", reference) for key in made]


@dataclass(frozen=True)
class Form:
    """A stored form alone in a graph; ``decibels``: what its arithmetic leaves of the float64
    product with the decoded weights."""

    form: str
    bits: int
    decibels: float
    accuracy_level: int = 4
    lookup: bool = False


_EXACT, _INTEGER = 110.0, 33.0

FORMS = {
    "folded-int8": Form("folded", 8, _EXACT),
    "folded-int4": Form("folded", 4, _EXACT),
    "matmul-integer-int8": Form("matmul-integer", 8, _INTEGER),
    "expanded-int4": Form("expanded", 4, _INTEGER),
    "nbits-int4-level0": Form("matmul-nbits", 4, _EXACT, accuracy_level=0),
    "nbits-int4-level1": Form("matmul-nbits", 4, _EXACT, accuracy_level=1),
    "nbits-int4-level4": Form("matmul-nbits", 4, _INTEGER, accuracy_level=4),
    "nbits-int8-level4": Form("matmul-nbits", 8, _INTEGER, accuracy_level=4),
    "gather-int8": Form("gather", 8, _EXACT, lookup=True),
    "gather-nibbles-int4": Form("gather-nibbles", 4, _EXACT, lookup=True),
}


def make_form(name: str, folder: Path) -> Asked:
    """One product or lookup whose weight is stored in this form, and its float64 answer."""
    form = FORMS[name]
    rng = np.random.default_rng(3)
    base = table(64, 96) if form.lookup else product(192, 40)
    # Portable plans store uint8 weights where a product is in integers.
    placing = Placing(unsigned=form.bits == 8, accuracy_level=form.accuracy_level)
    got, decoded, _ = quantize(
        base, form.form, form.bits, symmetric=form.lookup, scale="float32", placing=placing
    )
    weight = arrays(decoded)["w"].astype(np.float64)
    feed: dict[str, Array]
    if form.lookup:
        feed = {"i": rng.integers(0, 64, (3, 5))}
        reference = weight[feed["i"]]
    else:
        feed = {"x": rng.standard_normal((16, 192)).astype(np.float32)}
        # Not a product of BLAS: numpy's own is wrong on some emulated CPUs.
        x = feed["x"].astype(np.float64)
        reference = np.einsum("mk,kn->mn", x, weight, optimize=False)
    path = folder / f"{name}.onnx"
    onnx.save(got, path)
    np.savez(path.with_suffix(".npz"), **feed)
    return Asked(path, reference)
