"""Q6_K and Q3_K against ggml's own encoder and decoder."""

from __future__ import annotations

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("numba")

import itertools

from tests import ggml_oracle

from edgeopt.core.ggml import TYPES_BY_NAME
from edgeopt.numerics.ggml.kquants_symmetric import encode_q3_k, encode_q6_k

ENCODERS = {"Q6_K": encode_q6_k, "Q3_K": encode_q3_k}

both = pytest.mark.parametrize("name", ENCODERS)


@pytest.fixture(scope="module", autouse=True)
def ggml() -> None:
    pytest.importorskip("llama_cpp")


def decoded(name: str, rows: NDArray[np.float32], raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    assert raw.shape == (len(rows), TYPES_BY_NAME[name].row_bytes(rows.shape[1]))
    return ggml_oracle.decode(name, raw, rows.shape[1])


def errors(
    name: str,
    rows: NDArray[np.float32],
    back: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Squared error: plain, by ggml's weights for the type, and by importance alone if given."""
    x = rows.astype(np.float64)
    off = (x - back) ** 2
    if importance is None:
        return np.array([off.sum(), (off * x * x).sum()])
    blocks = x.reshape(len(x), -1, 256)
    scale = np.sqrt(2 * (blocks**2).mean(axis=2, keepdims=True) + blocks**2).reshape(x.shape)
    ruled = off * importance if name == "Q6_K" else off * importance * scale
    return np.array([off.sum(), ruled.sum(), (off * importance).sum()])


def relative(
    name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Our errors over ggml's."""
    ours = decoded(name, rows, ENCODERS[name](rows, importance))
    theirs = ggml_oracle.decode(name, ggml_oracle.encode(name, rows, importance), rows.shape[1])
    return errors(name, rows, ours, importance) / errors(name, rows, theirs, importance)


def gaussian(n: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(n).normal(0, 0.02, (n, columns)).astype(np.float32)


def heavy(n: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(n).standard_t(3, (n, columns)).astype(np.float32)


def some_importance(columns: int) -> NDArray[np.float32]:
    return np.exp(np.random.default_rng(columns).normal(0, 1.5, columns)).astype(np.float32)


@both
@pytest.mark.parametrize("rows", [gaussian(96, 512), heavy(96, 512)], ids=["gaussian", "heavy"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
def test_no_worse_than_ggml_by_any_measure(
    name: str, rows: NDArray[np.float32], weighted: bool
) -> None:
    ratios = relative(name, rows, some_importance(512) if weighted else None)
    assert (ratios <= 1).all(), ratios


def minilm() -> dict[str, NDArray[np.float32]]:
    pytest.importorskip("all_minilm_l6_v2")
    import all_minilm_l6_v2
    from safetensors.numpy import load

    archive = Path(all_minilm_l6_v2.__file__).parent / "model.zip"
    with zipfile.ZipFile(archive) as files, files.open("model.safetensors") as file:
        return load(io.BytesIO(file.read()).getvalue())


@both
def test_no_worse_than_ggml_on_real_weights(name: str) -> None:
    tensors = minilm()
    for key in (
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.5.output.dense.weight",
    ):
        rows = np.ascontiguousarray(tensors[key].reshape(-1, 256)[:512])
        for importance in (None, some_importance(256)):
            ratios = relative(name, rows, importance)
            assert (ratios <= 1).all(), (key, ratios)


@both
def test_blocks_do_not_depend_on_one_another(name: str) -> None:
    rows = gaussian(7, 1280)
    whole = ENCODERS[name](rows, None)
    blocks = ENCODERS[name](rows.reshape(-1, 256), None)
    assert (whole.reshape(blocks.shape) == blocks).all()


@both
@pytest.mark.parametrize("weighted", [False, True])
def test_any_split_and_any_threads_give_the_same_bytes(name: str, weighted: bool) -> None:
    rows = heavy(33, 512)
    importance = some_importance(512) if weighted else None
    encode = ENCODERS[name]
    whole = encode(rows, importance)
    splits = [0, 1, 2, 7, 20, 33]
    parts = [rows[lo:hi] for lo, hi in itertools.pairwise(splits)]
    with ThreadPoolExecutor(3) as pool:
        coded = list(pool.map(lambda part: encode(part, importance), parts))
    assert (np.concatenate(coded) == whole).all()
