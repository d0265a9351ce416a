"""Predicted sizes against the files that the verbs then write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from rich.console import Console
from tests.in_process import no_processes
from tests.verbs.small_onnx import conv_net, mlp, tied, weights, write

from edgeopt.anatomy import onnx_sizes as sizes
from edgeopt.files.open import open_source
from edgeopt.report.inspect_text import render
from edgeopt.verbs.export import export
from edgeopt.verbs.inspect import inspect
from edgeopt.verbs.quantize import quantize


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)


@pytest.mark.parametrize("make", [mlp, conv_net, tied])
def test_as_predicted_so_written(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = make(tmp_path / "source.onnx")
    predicted = dict(sizes.rewritten_sizes(open_source(source)))
    out = tmp_path / "out.onnx"
    written = {}
    export(source, out, half=True, force=True)
    written["FP16"] = out.stat().st_size
    for bits in (8, 4):
        # A floor this low asks for nothing beyond the plain recipe.
        quantize(
            source, out, bits=bits, prefer="size", target="portable", min_sqnr=-99.0, force=True
        )
        written[f"INT{bits}"] = out.stat().st_size
    assert predicted == written


def test_inspect_says_exact_and_gives_the_command(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.onnx")
    found = inspect(source)
    rows = {row.name: row for row in found.predictions if row.format == "ONNX"}
    assert {name: row.nbytes for name, row in rows.items()} == dict(
        sizes.rewritten_sizes(open_source(source))
    )
    # What the fidelity will ask for is not known before it is measured.
    assert {name for name, row in rows.items() if row.exact} == {"FP16"}
    assert "--target portable --prefer size" in (rows["INT4"].command or "")
    console = Console(width=100, record=True, quiet=False, file=(tmp_path / "shown").open("w"))
    render(found.to_json(), console)
    assert "ONNX INT8, ONNX INT4: the plain recipe's" in console.export_text()


def test_nothing_to_halve_is_not_predicted(tmp_path: Path) -> None:
    arrays = weights(w0=(64, 128), w1=(32, 128))
    arrays["w0"][0, 0] = arrays["w1"][0, 0] = 1e5
    source = open_source(mlp(tmp_path / "m.onnx", arrays=arrays))
    assert sizes.onnx_sizes(source).keys() == {"INT8", "INT4"}  # type: ignore[union-attr]


def test_large_files_are_estimated_unless_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(mlp(tmp_path / "m.onnx"))
    monkeypatch.setattr(sizes, "WHOLE_BUDGET", 1000)
    assert sizes.onnx_sizes(source) is None
    assert sizes.onnx_sizes(source, deep=True)


def test_a_graph_that_asks_for_terabytes(tmp_path: Path) -> None:
    arrays = {**weights(w=(64, 64)), "s": np.array([1 << 20, 1 << 20], np.int64)}
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["r"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "r"], ["y"]),
    ]
    path = write(tmp_path / "bomb.onnx", nodes, arrays, (TensorProto.FLOAT, ["n", 64]))
    rows = [row for row in inspect(path).predictions if row.format == "ONNX"]
    # Nobody computes what it asks for: the sizes are those of the graph as it stands.
    assert rows and all(row.nbytes < 64 * 64 * 4 + 4096 for row in rows)


def test_a_child_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(mlp(tmp_path / "m.onnx"))
    monkeypatch.setattr(sizes, "_SECONDS", 0.0)
    monkeypatch.setattr(sizes, "_SECONDS_A_BYTE", 0.0)
    assert sizes.onnx_sizes(source) is None
