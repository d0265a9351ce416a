"""Q8_0 to Q5_1 against gguf-py's encoders (byte for byte) and ggml's (errors, with importance)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from tests import ggml_oracle

from edgeopt.core.ggml import TYPES_BY_NAME
from edgeopt.errors import MissingExtraError
from edgeopt.files.reading import numpy_dtype
from edgeopt.numerics.ggml import decode, encode
from edgeopt.numerics.ggml.widen import widen

LEGACY = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def oracle(name: str, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):
        coded: NDArray[np.uint8] = quantize(rows, GGMLQuantizationType[name])
    return coded


def same(name: str, rows: NDArray[np.float32]) -> None:
    # numpy's minimum of zeros of both signs is the one or the other, by the processor.
    rows = rows + np.float32(0) if name.endswith("_1") else rows
    ours, theirs = encode(name, rows), oracle(name, rows)
    np.testing.assert_array_equal(ours, theirs)


#: Halves and whole codes of a scale of one: every value is a tie or far from one.
TIES = [k / 2 for k in range(-16, 17)]


@pytest.mark.parametrize("name", LEGACY)
@pytest.mark.parametrize("spread", [1e-42, 1e-38, 1e-7, 0.02, 1.0, 9e3])
def test_bytes_are_gguf_pys_at_any_size(name: str, spread: float) -> None:
    generator = np.random.default_rng(7)
    rows = (generator.standard_normal((64, 320)) * spread).astype(np.float32)
    rows[generator.random(rows.shape) < 0.1] = 0
    same(name, rows)


@pytest.mark.parametrize("name", LEGACY)
def test_bytes_of_half_precision_weights_with_many_ties(name: str) -> None:
    rows = np.random.default_rng(8).standard_normal((64, 512)).astype(np.float16) * np.float16(0.1)
    same(name, (rows.astype(np.float32) * 8).round() / 8)
    np.testing.assert_array_equal(encode(name, rows), oracle(name, rows.astype(np.float32)))


@pytest.mark.parametrize("name", LEGACY)
@settings(max_examples=50, deadline=None)
@given(
    st.one_of(
        arrays(np.float32, (2, 32), elements=st.floats(-65500, 65500, width=32)),
        arrays(np.float32, (2, 32), elements=st.sampled_from(TIES)),
        arrays(np.float32, (2, 32), elements=st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38])),
        arrays(np.float32, (2, 32), elements=st.sampled_from([-3.0, 3.0, 0.49999997, -0.5, 2.5])),
    )
)
def test_bytes_are_gguf_pys_whatever_the_values(name: str, rows: NDArray[np.float32]) -> None:
    same(name, rows)


@pytest.mark.parametrize("name", LEGACY)
def test_rows_are_independent(name: str) -> None:
    rows = np.random.default_rng(9).standard_normal((5, 96)).astype(np.float32)
    apart = np.concatenate([encode(name, row[None]) for row in rows])
    np.testing.assert_array_equal(encode(name, rows), apart)


def test_no_rows_no_bytes() -> None:
    assert encode("Q4_0", np.empty((0, 64), np.float32)).shape == (0, 36)


@pytest.mark.parametrize(
    ("name", "largest"), [("Q8_0", 8.5e6), ("Q4_0", -6e5), ("Q5_0", 2e6), ("Q4_1", 1e6)]
)
def test_a_scale_past_float16_is_refused_by_value(name: str, largest: float) -> None:
    rows = np.ones((3, 64), np.float32)
    rows[1, 40] = largest
    rows[2, 3] = 2 * largest
    with pytest.raises(ValueError, match="past float16's 65504; use BF16 or F32") as caught:
        encode(name, rows)
    assert f"{largest:.6g}" in str(caught.value)


def test_a_minimum_past_float16_is_refused() -> None:
    rows = np.full((1, 32), -70000, np.float32)
    with pytest.raises(ValueError, match="-70000"):
        encode("Q5_1", rows)


@pytest.mark.parametrize(("name", "steps"), [("Q8_0", 127), ("Q4_0", 8), ("Q5_0", 16)])
def test_scales_round_to_float16_as_numpy_does(name: str, steps: int) -> None:
    """Across float16's range, subnormals and the last value before overflow among them."""
    bits = np.random.default_rng(10).integers(0x30000000, 0x477FEFFF, 4096, dtype=np.uint32)
    scales = np.concatenate([bits.view(np.float32), np.float32([65504, 65519.9, 5.9e-8, 2.9e-8])])
    rows = np.zeros((len(scales), 32), np.float32)
    rows[:, 3] = scales * np.float32(-steps if name != "Q8_0" else steps)
    stored = np.ascontiguousarray(encode(name, rows)[:, :2]).view(np.float16)[:, 0]
    exact = (rows[:, 3] / np.float32(-steps if name != "Q8_0" else steps)).astype(np.float16)
    np.testing.assert_array_equal(stored.view(np.uint16), exact.view(np.uint16))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([[np.nan] * 32], np.float32), "NaN or Inf"),
        (np.array([[np.inf] * 32], np.float16), "NaN or Inf"),
        (np.zeros((2, 33), np.float32), "33 columns are no whole number of Q4_0 blocks of 32"),
    ],
)
def test_what_cannot_be_coded_is_refused(rows: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode("Q4_0", rows)


def test_the_width_is_the_types() -> None:
    for name in LEGACY:
        assert encode(name, np.ones((1, 64), np.float32)).shape[1] == TYPES_BY_NAME[name].nbytes * 2


# ---------------------------------------------------------------------------------------------
# with importance

SEARCHED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")


def errors(
    name: str, coded: NDArray[np.uint8], rows: NDArray[np.float32], importance: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Squared error under the importance alone, and under ggml's weights."""
    x = rows.astype(np.float64)
    square = (x - decode(name, coded, rows.shape[1])) ** 2 * importance
    ggmls = np.sqrt((x * x).mean(axis=1, keepdims=True) + x * x)
    return np.array([square.sum(), (square * ggmls).sum()])


def some_importance(columns: int, spread: float) -> NDArray[np.float32]:
    return np.exp(np.random.default_rng(3).standard_normal(columns) * spread).astype(np.float32)


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("spread", [0.0, 1.2])
@pytest.mark.parametrize("shape", ["normal", "heavy", "uniform"])
def test_errors_with_importance_are_no_larger_than_ggmls(
    name: str, spread: float, shape: str
) -> None:
    pytest.importorskip("llama_cpp")
    generator = np.random.default_rng(4)
    rows = {
        "normal": generator.standard_normal((24, 1024)) * 0.02,
        "heavy": generator.standard_t(3, (24, 1024)) * 0.02,
        "uniform": generator.uniform(-1, 1, (24, 1024)),
    }[shape].astype(np.float32)
    importance = some_importance(1024, spread)
    ours = errors(name, encode(name, rows, importance), rows, importance)
    theirs = errors(name, ggml_oracle.encode(name, rows, importance), rows, importance)
    assert (ours <= theirs).all(), ours / theirs


@pytest.mark.parametrize("name", SEARCHED)
@settings(max_examples=40, deadline=None)
@given(
    rows=arrays(np.float32, (2, 64), elements=st.floats(-60000, 60000, width=32)),
    importance=arrays(np.float32, 64, elements=st.sampled_from([0.0, 1e-12, 1.0, 3.0, 1e9])),
)
def test_importance_never_hurts_what_is_important(
    name: str, rows: NDArray[np.float32], importance: NDArray[np.float32]
) -> None:
    searched, direct = encode(name, rows, importance), encode(name, rows)
    after = errors(name, searched, rows, importance)[1]
    before = errors(name, direct, rows, importance)[1]
    # What float32 sums cannot tell apart, a few parts in a million of the largest value, is even.
    assert after <= before * 1.001 + 1e-11 * float((rows.astype(np.float64) ** 2).max())


@pytest.mark.parametrize("name", SEARCHED)
def test_values_on_a_grid_come_back_exactly(name: str) -> None:
    """What was Q4_1 before has an exact Q4_1 again, and an exact Q5_1."""
    before = "Q4_1" if name.endswith("_1") else "Q4_0"
    rows = np.random.default_rng(5).standard_normal((16, 512)).astype(np.float32)
    grid = decode(before, encode(before, rows), 512)
    again = encode(name, grid, some_importance(512, 0.5))
    np.testing.assert_array_equal(decode(name, again, 512), grid)


@pytest.mark.parametrize("name", SEARCHED)
def test_no_importance_at_all_is_the_same_for_all(name: str) -> None:
    rows = np.random.default_rng(6).standard_normal((3, 96)).astype(np.float32)
    none = encode(name, rows, np.zeros(96, np.float32))
    assert errors(name, none, rows, np.ones(96, np.float32))[0] < (rows**2).sum() / 50
    zeros = encode(name, np.zeros_like(rows), np.ones(96, np.float32))
    assert not decode(name, zeros, 96).any()


@pytest.mark.parametrize("name", SEARCHED)
def test_blocks_are_searched_apart(name: str) -> None:
    """Any split of the rows gives the same bytes, with lanes full or not."""
    rows = np.random.default_rng(9).standard_normal((9, 160)).astype(np.float32)
    importance = some_importance(160, 1.0)
    apart = np.concatenate([encode(name, row[None], importance) for row in rows])
    np.testing.assert_array_equal(encode(name, rows, importance), apart)


@pytest.mark.parametrize("name", SEARCHED)
def test_a_scale_past_float16_is_refused_with_importance_too(name: str) -> None:
    rows = np.ones((2, 64), np.float32)
    rows[1, 40], rows[1, 41] = 3e6, -3e6
    with pytest.raises(ValueError, match="of 3e\\+06 needs a"):
        encode(name, rows, np.ones(64, np.float32))


def test_8_bits_need_no_importance() -> None:
    rows = np.random.default_rng(9).standard_normal((4, 96)).astype(np.float32)
    np.testing.assert_array_equal(
        encode("Q8_0", rows, some_importance(96, 2.0)), encode("Q8_0", rows)
    )


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_importance_that_is_none_is_refused(bad: float) -> None:
    importance = np.ones(32, np.float32)
    importance[3] = bad
    with pytest.raises(ValueError, match="importance"):
        encode("Q4_0", np.ones((1, 32), np.float32), importance)


# ---------------------------------------------------------------------------------------------
# what comes in


def test_every_float16_is_widened_as_numpy_does() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits[(bits & 0x7C00) != 0x7C00].view(np.float16).reshape(-1, 31)
    floats, finite = widen(halves)
    assert finite
    np.testing.assert_array_equal(floats.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(dtype: str, bad: float) -> None:
    rows = np.ones((3, 5000), numpy_dtype(dtype))
    assert widen(rows)[1]
    rows[2, 4321] = bad
    assert not widen(rows)[1]
    with pytest.raises(ValueError, match="NaN or Inf"):
        encode("Q8_0", rows[:, :4992])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_any_float_type_and_layout_is_coded_as_its_float32(dtype: str) -> None:
    rows = np.random.default_rng(1).standard_normal((300, 2048)).astype(numpy_dtype(dtype))
    same = encode("Q4_0", np.ascontiguousarray(rows[::3, 1024:]).astype(np.float32))
    np.testing.assert_array_equal(encode("Q4_0", rows[::3, 1024:]), same)
    np.testing.assert_array_equal(encode("Q4_0", rows)[::3, same.shape[1] :], same)


def test_without_numba_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jit", "widen"):
        monkeypatch.delitem(sys.modules, f"edgeopt.numerics.ggml.{name}")
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(
        MissingExtraError, match=r"quantizing to Q4_0 needs numba.*pip install '.*\[gguf"
    ):
        encode("Q4_0", np.ones((1, 32), np.float32))
    assert encode("F16", np.ones((1, 32), np.float32)).shape == (1, 64)


def test_importance_of_other_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="31 values of importance for 32 columns"):
        encode("Q4_0", np.ones((1, 32), np.float32), np.ones(31, np.float32))
