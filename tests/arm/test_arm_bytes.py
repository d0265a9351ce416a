"""Codes, scales and blocks are the same bytes on ARM as on x86-64.

One exception, stated and held: methods that search add up in float32 by ``numpy.einsum``, which
fuses multiply and add on ARM and not on x86-64. Where two candidates are as good as equal, another
may win: about one asymmetric block of ``mse`` in a hundred, at the same error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.arm.emulated import CPUS, Cpu
from tests.arm.guest import code, encode

from edgeopt.files import safetensors
from edgeopt.files.weights import load_weights
from edgeopt.numerics import ggml

_SEARCH = ("mse-", "hqq-")
_LEGACY = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
_K = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float weights with outliers in a safetensors file, and blocks of every type to decode."""
    folder = tmp_path_factory.mktemp("weights")
    rng = np.random.default_rng(4)
    matrix = (rng.standard_t(4, (48, 512)) * 0.05).astype(np.float32)
    entry = safetensors.TensorEntry("matrix", "float32", matrix.shape)
    path = folder / "weights.safetensors"
    path.touch()
    with safetensors.filling(path, [entry], {}) as put:
        put("matrix", matrix)
    for kind in ggml.decodes():
        np.save(folder / f"{kind}.npy", ggml.encode(kind, matrix))
    return folder


def test_numpy_arithmetic_gives_the_same_bytes(cpu: Cpu, weights: Path, tmp_path: Path) -> None:
    """Methods, packing, calibrated ranges, plain encoders, all decoders."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    code(weights, here)
    cpu.run("code", str(weights), str(there))
    with np.load(here / "code.npz") as one, np.load(there / "code.npz") as other:
        want, got = dict(one), dict(other)
    assert set(got) == set(want)
    assert {f"decoded-{kind}" for kind in ggml.decodes()} <= set(want)
    searched = {name for name in want if name.removeprefix("values-").startswith(_SEARCH)}
    others = set(want) - searched
    assert [name for name in others if want[name].tobytes() != got[name].tobytes()] == []
    matrix = load_weights(weights / "weights.safetensors")["matrix"].astype(np.float64)
    for name in (name for name in searched if name.startswith("values-")):
        same = want[name] == got[name]
        assert same.mean() > 0.95, name
        errors = [np.square(values - matrix).sum() for values in (want[name], got[name])]
        assert errors[1] == pytest.approx(errors[0], rel=1e-5), name


@pytest.mark.parametrize(
    "types", [_LEGACY, pytest.param(_K, marks=pytest.mark.slow)], ids=["legacy", "k"]
)
def test_compiled_encoders_give_the_same_bytes(
    types: tuple[str, ...], weights: Path, tmp_path: Path
) -> None:
    """numba compiles for the CPU it runs on; compiling under emulation takes a minute, and for the
    K-quants ten: those are marked slow too."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    encode(weights, here, *types)
    CPUS[0].run("encode", str(weights), str(there), *types, timeout=1700)
    for kind in types:
        np.testing.assert_array_equal(np.load(here / f"{kind}.npy"), np.load(there / f"{kind}.npy"))
