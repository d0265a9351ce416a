"""Readers, from the path to the described tensors, and weights through a map.

Files of 300 small tensors: what is timed is the parsing, which a large file costs no more of.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeopt import load_weights
from edgeopt.core import Weight
from edgeopt.files import gguf_write, safetensors
from edgeopt.files.open import open_source

pytestmark = pytest.mark.benchmark(group="python")

_TENSORS, _SIDE = 300, 32
_VOCABULARY = 32_000


def _arrays() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {
        f"blk.{i}.ffn_up.weight": rng.standard_normal((_SIDE, _SIDE)).astype(np.float32)
        for i in range(_TENSORS)
    }


def _write_safetensors(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    path.touch()
    entries = [safetensors.TensorEntry(name, "float32", a.shape) for name, a in arrays.items()]
    with safetensors.filling(path, entries, {"format": "pt"}) as put:
        for name, array in arrays.items():
            put(name, array)


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Path]:
    """The same tensors in every format; GGUF with a vocabulary of LLaMA's size."""
    arrays = _arrays()
    made = {kind: folder / f"model.{kind}" for kind in ("safetensors", "gguf", "pt", "onnx")}
    _write_safetensors(made["safetensors"], arrays)
    torch.save({name: torch.from_numpy(a) for name, a in arrays.items()}, made["pt"])
    _write_gguf(made["gguf"], arrays)
    _write_onnx(made["onnx"], arrays)
    return made


def _write_gguf(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    tokens = [f"token{i}" for i in range(_VOCABULARY)]
    scores = [float(-i) for i in range(_VOCABULARY)]
    fields = {
        "general.architecture": gguf_write.string("llama"),
        "tokenizer.ggml.tokens": gguf_write.array("string", tokens),
        "tokenizer.ggml.scores": gguf_write.array("float32", scores),
    }
    layout = gguf_write.GgufLayout.of(fields, [(n, a.shape, "F32") for n, a in arrays.items()])
    path.touch()
    with gguf_write.writing_gguf(path, layout) as writer:
        for name, array in arrays.items():
            writer.put(name, 0, array.view(np.uint8))


def _write_onnx(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    names = ["x", *(f"h{i}" for i in range(len(arrays)))]
    nodes = [
        helper.make_node("MatMul", [names[i], weight], [names[i + 1]])
        for i, weight in enumerate(arrays)
    ]
    value = lambda name: helper.make_tensor_value_info(name, 1, ["n", _SIDE])  # noqa: E731
    weights = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "net", [value("x")], [value(names[-1])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "pt", "onnx"])
def test_open(benchmark: Any, files: dict[str, Path], kind: str) -> None:
    source = benchmark(open_source, files[kind])
    assert len(source.weights) == _TENSORS


def test_load_weights(benchmark: Any, files: dict[str, Path]) -> None:
    """Opening, and a look at every tensor through the map: nothing is copied."""

    def mapped() -> int:
        weights = load_weights(files["safetensors"])
        return sum(weights[name].nbytes for name in weights)

    assert benchmark(mapped) == _TENSORS * _SIDE * _SIDE * 4


@pytest.fixture(scope="module")
def large(folder: Path) -> Path:
    path = folder / "large.safetensors"
    _write_safetensors(path, {"w": np.ones((2048, 2048), np.float32)})
    return path


@pytest.mark.benchmark(group="arrays")
def test_read_through_a_map(benchmark: Any, large: Path) -> None:
    """Opening 16 MiB and adding it up, from a warm page cache."""

    def added() -> float:
        return float(load_weights(large)["w"].sum())

    assert benchmark(added) == 2048 * 2048


def test_describing_reads_no_data(benchmark: Any, large: Path) -> None:
    """What opening costs does not depend on how much there is."""

    def described() -> Weight:
        return load_weights(large).describe("w")

    assert benchmark(described).nbytes == 1 << 24
