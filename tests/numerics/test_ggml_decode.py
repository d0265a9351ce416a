"""What blocks stand for, bit for bit, against gguf-py's decoders and ggml's own."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests import ggml_oracle

from edgeopt.core.ggml import PLAIN_TYPES, TYPES_BY_NAME
from edgeopt.numerics.ggml import decode, decodes

BLOCKS = tuple(name for name in decodes() if name not in PLAIN_TYPES)


def raw_rows(name: str, n: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Any bytes are a block; float16 fields may be NaN, infinite, zero or subnormal."""
    width = TYPES_BY_NAME[name].row_bytes(columns)
    return np.random.default_rng(seed).integers(0, 256, (n, width), dtype=np.uint8)


def assert_same_bits(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    unlike = ours.view(np.uint32) != np.ascontiguousarray(theirs).view(np.uint32)
    # A NaN is a NaN: which one is left to the machine.
    assert (np.isnan(ours[unlike]) & np.isnan(theirs[unlike])).all()
    assert ours.dtype == np.float32
    assert unlike.mean() < 0.5


@pytest.mark.parametrize("name", decodes())
def test_bits_are_gguf_pys(name: str) -> None:
    raw = raw_rows(name, 96, 1024)
    with np.errstate(all="ignore"):
        theirs = dequantize(raw, GGMLQuantizationType[name]).astype(np.float32, copy=False)
    assert_same_bits(decode(name, raw, 1024), theirs)


@pytest.mark.parametrize("name", BLOCKS)
def test_bits_are_ggmls(name: str) -> None:
    pytest.importorskip("llama_cpp")
    raw = raw_rows(name, 24, 1024, seed=1)
    ours = decode(name, raw, 1024)
    assert_same_bits(ours, ggml_oracle.decode(name, raw, 1024))


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), columns=st.integers(1, 3), rows=st.integers(0, 3))
def test_any_bytes_of_any_shape(name: str, seed: int, columns: int, rows: int) -> None:
    raw = raw_rows(name, rows, 256 * columns, seed)
    ours = decode(name, raw, 256 * columns)
    assert ours.shape == (rows, 256 * columns)
    if rows:
        with np.errstate(all="ignore"):
            assert_same_bits(ours, dequantize(raw, GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_window_on_a_wider_array(name: str) -> None:
    width = TYPES_BY_NAME[name].row_bytes(512)
    wide = np.random.default_rng(2).integers(0, 90, (4, width + 6), dtype=np.uint8)
    wide.flags.writeable = False
    window = wide[::2, 3 : 3 + width]
    np.testing.assert_array_equal(decode(name, window, 512), decode(name, window.copy(), 512))


def test_a_width_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="256 Q4_K take 144"):
        decode("Q4_K", np.zeros((1, 143), np.uint8), 256)
    with pytest.raises(ValueError, match="100 columns"):
        decode("Q4_K", np.zeros((1, 144), np.uint8), 100)
