"""Encoders, decoders, packing, calibrators and statistics: time per 2^18 numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.core.proof import Measurement
from edgeopt.core.results import Results, Subject
from edgeopt.numerics import ggml
from edgeopt.numerics.derive import derive
from edgeopt.numerics.methods import METHODS
from edgeopt.numerics.pack import pack_rows, unpack_rows
from edgeopt.numerics.ranges import CALIBRATORS

pytestmark = pytest.mark.benchmark(group="arrays")

_ROWS, _COLUMNS = 256, 1024
#: Blocks of 32 at 4 bits, one scale a row at 8.
_BLOCK = {8: None, 4: 32}


@pytest.fixture(scope="module")
def weights() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return (rng.standard_t(5, (_ROWS, _COLUMNS)) * 0.02).astype(np.float32)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_encode(benchmark: Any, weights: NDArray[np.float32], kind: str) -> None:
    ggml.encode(kind, weights[:8])  # compiled before it is timed
    assert len(benchmark(ggml.encode, kind, weights)) == _ROWS


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_decode(benchmark: Any, weights: NDArray[np.float32], kind: str) -> None:
    raw = ggml.encode(kind, weights)
    assert benchmark(ggml.decode, kind, raw, _COLUMNS).shape == weights.shape


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("method", list(METHODS))
def test_affine(benchmark: Any, weights: NDArray[np.float32], method: str, bits: int) -> None:
    codes = benchmark(METHODS[method], weights, bits=bits, block=_BLOCK[bits], symmetric=True)
    assert codes.q.shape == weights.shape


def test_pack_int4(benchmark: Any, weights: NDArray[np.float32]) -> None:
    q = METHODS["rtn"](weights, bits=4, block=32, symmetric=True).q
    assert benchmark(pack_rows, q, 4).shape == (_ROWS, _COLUMNS // 2)


def test_unpack_int4(benchmark: Any, weights: NDArray[np.float32]) -> None:
    packed = pack_rows(METHODS["rtn"](weights, bits=4, block=32, symmetric=True).q, 4)
    assert benchmark(unpack_rows, packed, _COLUMNS, 4, signed=True).shape == weights.shape


@pytest.mark.parametrize("name", list(CALIBRATORS))
def test_calibrate(benchmark: Any, weights: NDArray[np.float32], name: str) -> None:
    """Sixteen activations seen, then the range."""
    seen = weights.reshape(16, -1)

    def calibrate() -> tuple[float, float]:
        calibrator = CALIBRATORS[name]()
        for activation in seen:
            calibrator.observe(activation)
        return calibrator.range()

    low, high = benchmark(calibrate)
    assert low < 0 < high


def test_derive(benchmark: Any) -> None:
    """Figures, intervals and verdict of two artifacts, five processes of 500 latencies each."""
    rng = np.random.default_rng(1)
    conditions = {"device": "cpu", "threads": 1, "batch": 1, "workload": "inference"}
    measured = tuple(
        Measurement(
            name,
            "latency",
            "s",
            conditions,
            tuple(tuple(rng.gamma(50, scale, 500)) for _ in range(5)),
            tuple(tuple([50] * 10) for _ in range(5)),
        )
        for name, scale in (("a", 2e-5), ("b", 1e-5))
    )
    subjects = tuple(
        Subject(n, f"{n}.onnx", "onnx", "onnxruntime", ((f"{n}.onnx", 1),), "0" * 64) for n in "ab"
    )
    results = Results("bench", "2026-01-01T00:00:00+00:00", "a", subjects, measured, {}, {})
    assert benchmark(derive, results).rows
