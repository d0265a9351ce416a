"""Bitmask and values: exact, however the tensor is cut, against the obvious loop."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.core import Sparse
from edgeopt.numerics import sparse_pack
from edgeopt.numerics.sparse_pack import Ranks, count_nonzero, pack, popcount, unpack

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, np.int64, np.bool_]


@st.composite
def tensors(draw):
    """Any bits at all, so NaN payloads, infinities and -0.0 too; from all zero to all dense."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    size = draw(st.integers(0, 90))
    keep = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    raw = rng.integers(0, 2 if dtype == np.bool_ else 256, (size, dtype.itemsize), np.uint8)
    special = rng.random(size) < 0.2
    if dtype.kind == "f" or dtype == ml_dtypes.bfloat16:
        odd = np.array([-0.0, np.nan, np.inf, -np.inf, 5e-324], dtype)
        raw[special] = odd[rng.integers(0, odd.size, special.sum())][:, None].view(np.uint8)
    raw[rng.random(size) >= keep] = 0
    return raw.reshape(-1).view(dtype)


def packed(values, cuts):
    pieces = np.split(values, sorted(cuts))
    masks, kept = zip(*pack(pieces), strict=True)
    return np.concatenate(masks), np.concatenate(kept)


@settings(max_examples=60)
@given(tensors(), st.data())
def test_round_trip_bit_for_bit(values, data):
    cuts = data.draw(st.lists(st.integers(0, values.size), max_size=3))
    mask, kept = packed(values, cuts)
    nonzero = [i for i in range(values.size) if any(values[i : i + 1].tobytes())]
    assert count_nonzero(values) == kept.size == popcount(mask) == len(nonzero)
    assert kept.tobytes() == values[nonzero].tobytes()
    bits = [int(mask[i // 8]) >> i % 8 & 1 for i in range(8 * mask.size)]
    assert [i for i, bit in enumerate(bits) if bit] == nonzero
    assert mask.nbytes + kept.nbytes == Sparse(kept.size, values.dtype.name).nbytes((values.size,))
    begin = data.draw(st.integers(0, values.size))
    end = data.draw(st.integers(begin, values.size))
    ranks = Ranks(lambda lo, hi: mask[lo:hi], values.size)
    lo, hi = ranks.before(begin), ranks.before(end)
    assert (lo, hi) == (sum(i < begin for i in nonzero), sum(i < end for i in nonzero))
    got = unpack(mask[begin // 8 : -(-end // 8)], begin % 8, end - begin, kept[lo:hi])
    assert got.dtype == values.dtype
    assert got.tobytes() == values[begin:end].tobytes()


def test_counts_hold_over_many_blocks(monkeypatch):
    """More mask bytes than one block and one piece, at their edges."""
    monkeypatch.setattr(sparse_pack, "_STRIDE", 4)
    monkeypatch.setattr(sparse_pack, "_PIECE", 16)
    rng = np.random.default_rng(0)
    values = (rng.random(1003) < 0.4).astype(np.float32)
    mask, kept = packed(values, [100, 101, 500])
    ranks = Ranks(lambda lo, hi: mask[lo:hi], values.size)
    before = np.concatenate([[0], np.cumsum(values != 0)])
    assert [ranks.before(i) for i in range(values.size + 1)] == before.tolist()
    assert ranks.total == before[-1] == popcount(mask)
    for begin, end in [(0, 1003), (1, 1003), (127, 129), (128, 640), (999, 1003)]:
        part = kept[before[begin] : before[end]]
        got = unpack(mask[begin // 8 : -(-end // 8)], begin % 8, end - begin, part)
        np.testing.assert_array_equal(got, values[begin:end])


def test_minus_zero_is_a_value():
    mask, kept = packed(np.float32([0.0, -0.0, 1.0]), [])
    assert mask.tolist() == [0b110]
    assert np.signbit(kept).tolist() == [True, False]


def test_what_does_not_add_up_is_refused():
    mask = np.uint8([0b0110])
    with pytest.raises(ValueError, match="mask has 2 values, 1 are given"):
        unpack(mask, 0, 4, np.float32([1]))
    with pytest.raises(ValueError, match="mask has 2 values, 3 are given"):
        unpack(mask, 0, 4, np.float32([1, 2, 3]))
    with pytest.raises(ValueError, match="bits after the last of 2 elements are set"):
        Ranks(lambda lo, hi: mask[lo:hi], 2)
    with pytest.raises(ValueError, match="elements of 16 bytes"):
        count_nonzero(np.complex128([1]))


@pytest.mark.parametrize(
    ("scheme", "shape", "nbytes", "why"),
    [
        (Sparse(500), (1000,), 125 + 2000, None),
        (Sparse(500, "bfloat16"), (10, 100), 125 + 1000, None),
        (Sparse(0, "int8"), (9,), 2, None),
        (Sparse(968), (1000,), 125 + 3872, None),
        (Sparse(969), (1000,), 125 + 3876, "31 of 1000 values are zero: 4001 bytes sparse, 4000"),
        (Sparse(1), (), 5, "0 of 1 values are zero"),
        (Sparse(0), (3, 0), 0, "no elements"),
        (Sparse(1, "float4_e2m1fn"), (8,), 2, "no whole bytes"),
    ],
)
def test_scheme(scheme, shape, nbytes, why):
    assert scheme.nbytes(shape) == nbytes
    reason = scheme.accepts(shape)
    assert (reason is None) == (why is None)
    assert why is None or why in reason
    assert Sparse.from_json(scheme.to_json()) == scheme
