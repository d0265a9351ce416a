"""Models that plain ONNX Runtime runs are quantized, or refused for what is in the way.

ONNX Runtime is the judge of both files: it loads what was written, infinities stand where the
source has them, and the rest is near.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.contract.odd_models import ODD, QUANTIZED, Odd, feeds_of
from tests.in_process import no_processes

import edgeopt
from edgeopt.errors import EdgeoptError

#: What is asked of edgeopt, and the decibels that the answers keep on rows of the kind given.
#: (The weights are noise in four bits, so that is not much.)
WAYS: dict[str, tuple[dict[str, Any], float]] = {
    "8 bits": ({"bits": 8, "prefer": "size"}, 20),
    "4 bits": ({"bits": 4, "prefer": "size"}, 6),
    "8 bits, static": ({"bits": 8, "prefer": "speed", "target": "portable"}, 20),
    "4 bits, static": ({"bits": 4, "prefer": "speed", "target": "portable"}, 6),
    "half": ({"half": True}, 50),
}

#: What is refused, by model and way (all where it is ""), and the words that say why.
REFUSED = {
    ("sequence_is_the_output", ""): "parts is seq(tensor(float)), which no array holds",
    ("infinite_weights_of_products", ""): "V holds Inf",
    ("float16", "half"): "W: is float16 already",
    ("words", "half"): "give --data",
}

#: What a file of a few kilobytes may miss, and noise for weights: none is of the graph's form.
_SMALL = {"not slower", "file smaller", "same answers", "rows in a batch"}


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _rows(session: onnxruntime.InferenceSession, feeds: dict[str, Any]) -> list[dict[str, Any]]:
    """Two rows, each as the model takes it: with a batch of one where it has a batch."""
    shapes = {i.name: list(i.shape) for i in session.get_inputs()}
    rows = []
    for number in range(2):
        row = {}
        for name, shape in shapes.items():
            array = np.asarray(feeds[name][number])
            row[name] = np.expand_dims(array, shape.index("batch")) if "batch" in shape else array
        rows.append({k: v.astype(object) if v.dtype.kind == "U" else v for k, v in row.items()})
    return rows


def _agreement(want: Any, got: Any) -> float:
    """dB where both are finite; minus infinity where one is and the other is not."""
    a, b = np.asarray(want), np.asarray(got)
    if a.shape != b.shape or a.dtype != b.dtype:
        return -np.inf
    if a.dtype.kind != "f":
        return np.inf  # labels may flip with noise for weights
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if (
        not np.array_equal(x[~finite], y[~finite], equal_nan=True)
        or not np.isfinite(y[finite]).all()
    ):
        return -np.inf
    noise = float(np.sum((x[finite] - y[finite]) ** 2))
    return 10 * np.log10(float(np.sum(x[finite] ** 2)) / noise) if noise else np.inf


#: Each step that a graph goes through is in these.
_QUICK = ("4 bits", "8 bits, static", "half")


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_model_that_onnxruntime_runs(
    odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hold(odd, _QUICK, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD, ids=str)
def test_the_other_ways(odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hold(odd, [way for way in WAYS if way not in _QUICK], tmp_path, monkeypatch)


def _hold(odd: Odd, ways: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch, seconds=0.05)
    source = tmp_path / "model.onnx"
    onnx.save(odd.build(), source)
    feeds = feeds_of(odd)
    np.savez(tmp_path / "data.npz", **feeds)
    session = _session(source)
    rows = _rows(session, feeds)
    wanted = [session.run(None, row) for row in rows]
    for way in ways:
        options, floor = WAYS[way]
        given = dict(options)
        if way.endswith("static") or (not way.startswith("half") and odd.rows is not None):
            given["data"] = str(tmp_path / "data.npz")
        out = tmp_path / f"{way}.onnx"
        make = edgeopt.export if "half" in given else edgeopt.quantize
        reason = REFUSED.get((odd.name, way)) or REFUSED.get((odd.name, ""))
        if reason is not None:
            with pytest.raises(EdgeoptError) as refusal:
                make(source, out, **given)
            assert reason in str(refusal.value) and "\n" not in str(refusal.value)
            assert str(source) in str(refusal.value) or "give --data" in reason
            continue
        proof = make(source, out, force=True, **given)
        failed = {check.name for check in proof.verdict.checks if not check.passed}
        assert failed <= _SMALL, (way, [c for c in proof.verdict.checks if not c.passed])
        artifact = _session(out)
        worst = min(
            _agreement(a, b)
            for row, want in zip(rows, wanted, strict=True)
            for a, b in zip(want, artifact.run(None, row), strict=True)
        )
        assert worst >= floor, (way, worst)


@pytest.mark.parametrize(("op", "odd"), QUANTIZED, ids=lambda value: str(value))
def test_a_quantized_model_is_refused_before_it_is_run(
    op: str, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(odd.build(), source)
    _session(source).run(None, {"x": np.zeros((1, 32), np.float32)})

    def opened(*given: object, **more: object) -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    for make in (edgeopt.quantize, edgeopt.export):
        with pytest.raises(EdgeoptError, match=f"already quantized .*{op}"):
            make(source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("bits", [8, 4])
def test_what_edgeopt_quantized_is_not_quantized_again(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no operator tells: weights that are expanded by standard operators alone."""
    no_processes(monkeypatch, seconds=0.05)
    odd = next(o for o in ODD if o.name == "conv_norm_in_a_branch")
    onnx.save(odd.build(), tmp_path / "model.onnx")
    made = tmp_path / "made.onnx"
    edgeopt.quantize(tmp_path / "model.onnx", made, bits=bits, prefer="size", force=True)
    with pytest.raises(EdgeoptError, match="already quantized"):
        edgeopt.quantize(made, tmp_path / "again.onnx")


def test_operators_that_nobody_knows_are_named(tmp_path: Path) -> None:
    text = "agraph (float[batch,32] x) => (float[batch,8] y) { y = their.Secret(x, W) }"
    odd = Odd("secret", text, {"W": (32, 8)}, opset='"" : 17, "their" : 1')
    onnx.save(odd.build(), tmp_path / "model.onnx")
    for make in (edgeopt.quantize, edgeopt.export):
        with pytest.raises(EdgeoptError, match="Secret"):
            make(tmp_path / "model.onnx", tmp_path / "out.onnx")


def test_weights_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch, seconds=0.05)
    odd = next(o for o in ODD if o.name == "opset_7")
    source = tmp_path / "model.onnx"
    onnx.save(
        odd.build(), source, save_as_external_data=True, location="model.data", size_threshold=0
    )
    for bits in (8, 4):
        out = tmp_path / f"int{bits}.onnx"
        edgeopt.quantize(source, out, bits=bits, prefer="size", force=True)
        x = feeds_of(odd)["x"]
        (want,), (got,) = (_session(p).run(None, {"x": x}) for p in (source, out))
        assert _agreement(want, got) > 6
