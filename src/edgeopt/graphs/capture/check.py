"""Does the captured file answer as torch does? Run by ONNX Runtime, sample against sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from edgeopt.core import Array, InputSpec, symbolic

__all__ = ["FLOOR_DB", "agreement_db", "file_io", "open_session", "run_onnx"]

#: A float file that agrees less than this with its torch module is not the same model: plain
#: rounding differences of float32 leave 90 dB and more.
FLOOR_DB = 60.0

_DTYPES: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
    **{
        f"tensor({sign}int{bits})": f"{sign}int{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A quiet CPU session with the graph as it is in the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )


def file_io(path: Path) -> tuple[tuple[InputSpec, ...], tuple[InputSpec, ...]]:
    """Inputs and outputs as ONNX Runtime reports them; unnamed dimensions have a symbol each."""
    session = open_session(path)

    def specs(arguments: Sequence[onnxruntime.NodeArg]) -> tuple[InputSpec, ...]:
        return tuple(
            InputSpec(
                a.name,
                _DTYPES.get(a.type, a.type),
                tuple(symbolic(d, a.name, i) for i, d in enumerate(a.shape or ())),
            )
            for a in arguments
        )

    return specs(session.get_inputs()), specs(session.get_outputs())


def run_onnx(path: Path, feeds: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
    """Outputs of the file for each feed, in order; inputs that the file lacks are left out.

    An exporter drops an input that no output depends on.
    """
    session = open_session(path)
    taken = {i.name for i in session.get_inputs()}
    return [
        [np.asarray(v) for v in session.run(None, {k: v for k, v in f.items() if k in taken})]
        for f in feeds
    ]


def agreement_db(reference: Sequence[Array], got: Sequence[Array]) -> float:
    """The worst output's signal to noise ratio in dB; -inf where shapes or their number differ.

    Integer outputs count as equal or not. Values that are not finite must be so in both.
    """
    if len(reference) != len(got):
        return -math.inf
    worst = math.inf
    for a, b in zip(reference, got, strict=True):
        if a.shape != b.shape:
            return -math.inf
        if a.dtype.kind != "f":
            # An index may flip where two logits tie; more than a few would be another model.
            same = float(np.mean(a == b)) if a.size else 1.0
            worst = min(worst, math.inf if same >= 0.99 else -math.inf)
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if not np.array_equal(finite, np.isfinite(y)):
            return -math.inf
        signal = float(np.sum(x[finite] ** 2))
        noise = float(np.sum((x[finite] - y[finite]) ** 2))
        if noise > 0:
            worst = min(worst, 10 * math.log10(signal / noise) if signal > 0 else -math.inf)
    return worst
