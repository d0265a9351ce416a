"""Signal to noise of stored tensors against one pass of numpy over the whole."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest

from edgeopt.core import Weight
from edgeopt.measure import tensor_errors as module
from edgeopt.measure.tensor_errors import TensorError, tensor_errors


def weight(array: np.ndarray, dtype: str = "Q4_K", name: str = "w") -> Weight:
    reader = functools.partial(lambda a, lo, hi: a[lo:hi] if a.shape else a, array)
    return Weight(name, array.shape, dtype, array.nbytes, reader)


def error(before: np.ndarray, after: np.ndarray, dtype: str = "Q4_K") -> TensorError:
    return tensor_errors([(weight(before, "float32"), weight(after, dtype))], threads=2)[0]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 512)
    monkeypatch.setattr(module, "_PAGES", 2048)


@pytest.mark.parametrize("shape", [(1000,), (70, 64), (3, 50, 16), (1, 4096), (5, 1)])
def test_against_the_whole(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal(shape).astype(np.float32)
    after = before + 0.1 * rng.standard_normal(shape).astype(np.float32)
    found = error(before, after)
    noise = np.square(before.astype(np.float64) - after).sum()
    expected = 10 * math.log10(np.square(before, dtype=np.float64).sum() / noise)
    assert found.sqnr_db == pytest.approx(expected, abs=1e-4)
    assert found.worst_db <= found.sqnr_db + 1e-9
    assert found.finite
    assert (found.name, found.type) == ("w", "Q4_K")


def test_a_stretch_that_went_wrong_is_found() -> None:
    before = np.random.default_rng(0).standard_normal((800, 64)).astype(np.float32)
    after = before * np.float32(1.01)
    after[400:408] = 0
    found = error(before, after)
    assert found.sqnr_db > 15
    assert found.worst_db < 1
    assert found.worst_rows == (400, 408)


def test_rows_of_almost_nothing_are_not_asked_to_be_kept() -> None:
    before = np.random.default_rng(0).standard_normal((800, 64)).astype(np.float32)
    before[400:] *= 1e-9
    after = before.copy()
    after[400:] = 0
    found = error(before, after)
    assert found.worst_db > 100


def test_equal_and_empty_and_zero() -> None:
    ones = np.ones((4, 4), np.float32)
    assert error(ones, ones).sqnr_db == error(ones, ones).worst_db == math.inf
    assert error(np.zeros((4, 4), np.float32), ones).sqnr_db == -math.inf
    empty = np.zeros((0, 4), np.float32)
    assert error(empty, empty).sqnr_db == math.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite(bad: float) -> None:
    before = np.random.default_rng(0).standard_normal((80, 64)).astype(np.float32)
    after = before.copy()
    after[3, 5] = bad
    found = error(before, after)
    assert not found.finite
    assert math.isnan(found.sqnr_db)
    assert math.isnan(found.worst_db)


def test_plain_types_have_ggmls_names_and_threads_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for i, dtype in enumerate(("float16", "float32", "float64")):
        array = rng.standard_normal((100, 32))
        pairs.append(
            (weight(array, "float64", f"w{i}"), weight(array.astype(dtype), dtype, f"w{i}"))
        )
    steps: list[float | None] = []
    one = tensor_errors(pairs, threads=1, progress=lambda step, part: steps.append(part))
    assert one == tensor_errors(pairs, files=[Path("/nowhere")])
    assert [e.type for e in one] == ["F16", "F32", "F64"]
    assert one[0].sqnr_db == pytest.approx(73.7, abs=1)
    assert steps[-1] == 1.0
