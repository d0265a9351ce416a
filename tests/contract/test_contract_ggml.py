"""One contract for every tensor type of ggml that we encode."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("numba")
pytest.importorskip("gguf")
pytest.importorskip("ml_dtypes")

import gguf
import ml_dtypes
from tests import ggml_oracle

from edgeopt.core.ggml import PLAIN_TYPES, TYPE_NUMBERS, TYPES_BY_NAME
from edgeopt.numerics.ggml import decode, decodes, encode, encodes

#: What numba compiles is out of a tracer's sight, which slows down its compiler.
pytestmark = pytest.mark.no_cover

COLUMNS = 512
NAMES = encodes()
PACKED = [name for name in NAMES if name not in PLAIN_TYPES]

every = pytest.mark.parametrize("name", NAMES)
packed = pytest.mark.parametrize("name", PACKED)
either = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])


def some_rows(n: int = 24, columns: int = COLUMNS) -> NDArray[np.float32]:
    return np.random.default_rng(n).normal(0, 0.05, (n, columns)).astype(np.float32)


def some_importance(weighted: bool) -> NDArray[np.float32] | None:
    values = np.exp(np.random.default_rng(3).normal(0, 1, COLUMNS))
    return values.astype(np.float32) if weighted else None


def share_lost(rows: NDArray[np.float32], back: NDArray[np.float32]) -> float:
    return float(((rows - back) ** 2).sum() / (rows**2).sum())


def test_what_is_encoded_can_be_read_back() -> None:
    assert set(NAMES) <= set(decodes())
    assert len(set(NAMES)) == len(NAMES) == 13


@every
@either
def test_bytes_and_shape(name: str, weighted: bool) -> None:
    raw = encode(name, some_rows(), some_importance(weighted))
    assert raw.dtype == np.uint8
    assert raw.flags.c_contiguous
    assert raw.shape == (24, TYPES_BY_NAME[name].row_bytes(COLUMNS))
    assert raw.nbytes == TYPES_BY_NAME[name].tensor_bytes((24, COLUMNS))


@every
@either
def test_all_decoders_agree_bit_for_bit(name: str, weighted: bool) -> None:
    rows = some_rows()
    raw = encode(name, rows, some_importance(weighted))
    ours = decode(name, raw, COLUMNS)
    assert ours.dtype == np.float32
    kind = gguf.GGMLQuantizationType(TYPE_NUMBERS[name])
    theirs = gguf.dequantize(raw.view(np.float32) if name == "F32" else raw, kind)
    assert (np.asarray(theirs, np.float32).view(np.uint32) == ours.view(np.uint32)).all()
    assert share_lost(rows, ours) < 0.1


@packed
@either
def test_ggml_decodes_what_we_do(name: str, weighted: bool) -> None:
    pytest.importorskip("llama_cpp")
    raw = encode(name, some_rows(), some_importance(weighted))
    theirs = ggml_oracle.decode(name, raw, COLUMNS)
    assert (theirs.view(np.uint32) == decode(name, raw, COLUMNS).view(np.uint32)).all()


@every
@either
def test_any_split_on_any_threads_gives_the_same_bytes(name: str, weighted: bool) -> None:
    # More rows than are turned to float32 at a time.
    rows, importance = some_rows(300), some_importance(weighted)
    whole = encode(name, rows, importance)
    assert (encode(name, rows, importance) == whole).all()
    parts = [rows[lo:hi] for lo, hi in itertools.pairwise([0, 1, 2, 5, 256, 299, 300])]
    with ThreadPoolExecutor(3) as pool:
        coded = list(pool.map(lambda part: encode(name, part, importance), parts))
    assert (np.concatenate(coded) == whole).all()


@every
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
def test_only_values_matter_not_their_dtype(name: str, dtype: type[np.generic]) -> None:
    narrow = some_rows().astype(dtype)
    assert (encode(name, narrow) == encode(name, narrow.astype(np.float32))).all()


def strided(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = np.zeros((2 * len(rows), rows.shape[1] + 3), rows.dtype)
    wide[::2, 3:] = rows
    return wide[::2, 3:]


def read_only(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = rows.copy()
    rows.flags.writeable = False
    return rows


def unaligned(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    raw = bytearray(rows.nbytes + 1)
    raw[1:] = rows.tobytes()
    return np.frombuffer(raw, np.uint8)[1:].view(rows.dtype).reshape(rows.shape)


VIEWS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "strided": strided,
    "columns first": np.asfortranarray,
    "read-only": read_only,
    "unaligned": unaligned,
    "big-endian": lambda rows: rows.astype(">f4"),
}


@every
@pytest.mark.parametrize("view", VIEWS)
def test_the_layout_of_the_input_does_not_matter(name: str, view: str) -> None:
    rows = some_rows()
    seen = VIEWS[view](rows)
    before = seen.copy()
    assert (encode(name, seen) == encode(name, rows)).all()
    assert (seen == before).all()


@packed
def test_importance_may_be_strided_and_read_only(name: str) -> None:
    importance = some_importance(True)
    assert importance is not None
    apart = np.repeat(importance, 2)[::2]
    apart.flags.writeable = False
    rows = some_rows()
    assert (encode(name, rows, apart) == encode(name, rows, importance)).all()


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (11, 300), (23, 511)])
def test_a_value_that_is_no_number_is_refused(name: str, bad: float, at: tuple[int, int]) -> None:
    rows = some_rows()
    rows[at] = bad
    with pytest.raises(ValueError, match="NaN or Inf"):
        encode(name, rows)


@packed
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_importance_that_is_no_weight_is_refused(name: str, bad: float) -> None:
    importance = np.ones(COLUMNS, np.float32)
    importance[77] = bad
    with pytest.raises(ValueError, match="importance holds"):
        encode(name, some_rows(), importance)


@every
@pytest.mark.parametrize("columns", [COLUMNS - 1, COLUMNS + 256, 1, 0])
def test_importance_of_another_length_is_refused(name: str, columns: int) -> None:
    with pytest.raises(ValueError, match=f"{columns} values of importance for {COLUMNS} columns"):
        encode(name, some_rows(), np.ones(columns, np.float32))


@packed
def test_columns_that_fill_no_whole_block_are_refused(name: str) -> None:
    columns = TYPES_BY_NAME[name].block + 1
    with pytest.raises(ValueError, match=f"{columns} columns are no whole number of {name}"):
        encode(name, np.zeros((2, columns), np.float32))
    with pytest.raises(ValueError, match=f"{columns} columns are no whole number of {name}"):
        decode(name, np.zeros((2, 7), np.uint8), columns)


@every
def test_bytes_of_another_width_are_refused(name: str) -> None:
    raw = encode(name, some_rows())
    with pytest.raises(ValueError, match="take"):
        decode(name, np.ascontiguousarray(raw[:, :-1]), COLUMNS)


@every
def test_importance_of_nothing_but_zeros(name: str) -> None:
    rows = some_rows()
    raw = encode(name, rows, np.zeros(COLUMNS, np.float32))
    assert np.isfinite(decode(name, raw, COLUMNS)).all()


@every
@either
def test_zeros_come_back_as_zeros(name: str, weighted: bool) -> None:
    rows = some_rows()
    rows[0] = 0
    rows[5, 256:] = 0
    back = decode(name, encode(name, rows, some_importance(weighted)), COLUMNS)
    assert not back[0].any()
    assert not back[5, 256:].any()


@every
def test_no_rows(name: str) -> None:
    raw = encode(name, np.zeros((0, COLUMNS), np.float32))
    assert raw.shape == (0, TYPES_BY_NAME[name].row_bytes(COLUMNS))
    assert decode(name, raw, COLUMNS).shape == (0, COLUMNS)


@every
def test_encoding_what_was_decoded_loses_little_more(name: str) -> None:
    once = decode(name, encode(name, some_rows()), COLUMNS)
    twice = decode(name, encode(name, once), COLUMNS)
    assert share_lost(once, twice) <= share_lost(some_rows(), once)


@pytest.mark.parametrize("bits", ["K-quants", "blocks of 32", "halves"])
def test_more_bits_lose_less(bits: str) -> None:
    names = {
        "K-quants": ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16", "F32"],
        "blocks of 32": ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"],
        "halves": ["BF16", "F16", "F32"],
    }[bits]
    rows = some_rows(64)
    lost = [share_lost(rows, decode(name, encode(name, rows), COLUMNS)) for name in names]
    assert all(after < before for before, after in itertools.pairwise(lost)), lost


@packed
@pytest.mark.parametrize("power", [-30, -6, 0, 3])
def test_any_magnitude_gives_finite_values(name: str, power: int) -> None:
    rows = (some_rows(4) * np.float32(10.0) ** np.float32(power)).astype(np.float32)
    back = decode(name, encode(name, rows), COLUMNS)
    assert np.isfinite(back).all()
    # A minimum or a scale under float16's smallest step is that step, or nothing.
    off = ((rows.astype(np.float64) - back) ** 2).sum()
    assert off <= 1.001 * (rows.astype(np.float64) ** 2).sum() + rows.size * 2.0**-46
