"""Saved results: told from models, put together, and refused where they cannot be compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgeopt.core import Fidelity, Layer, Measurement, Quality, Results, Subject
from edgeopt.errors import SourceError, UsageError
from edgeopt.numerics.derive import derive
from edgeopt.results.saved import SavedResults, against, is_saved, merge, open_saved

HERE = {"cpu": "Xeon", "cores": 2, "onnxruntime": "1.32.0", "numpy": "2.4", "load_1min": 0.3}
ONE = {"runtime": "onnxruntime", "device": "cpu", "threads": 1, "batch": 1, "seq": None}
LIKE = Fidelity("y", 40.0, 0.99, 0.1, 1.0, 0.01, True, False, 8)


def document(
    *names: str, seconds: Sequence[float] = (0.01, 0.02), digest: str = "a", **environment: Any
) -> Results:
    rng = np.random.default_rng(0)
    subjects, measured = [], []
    for i, name in enumerate(names):
        subjects.append(
            Subject(
                name,
                f"{name}.onnx",
                "onnx",
                "onnxruntime",
                ((f"{name}.onnx", 1000 * (i + 1)),),
                digest + str(i),
                layers=(Layer("w", "float32", 900, 30.0 if i else None),),
            )
        )
        values = seconds[i] * (1 + 0.01 * rng.standard_normal((5, 200)))
        measured.append(
            Measurement(name, "latency", "s", ONE, tuple(map(tuple, values)), ((50,) * 4,) * 5)
        )
    return Results(
        "bench",
        "2026-11-22T00:00:00+00:00",
        names[0],
        tuple(subjects),
        tuple(measured),
        {**HERE, **environment},
        {"seconds": 1.0},
        fidelity=dict.fromkeys(names[1:], (LIKE,)),
        quality=tuple(Quality(n, "accuracy", 0.5, True, 2, "digits", (0.0, 1.0)) for n in names),
    )


def save(path: Path, results: Results) -> Path:
    path.write_text(json.dumps(results.to_json()))
    return path


def test_what_is_a_document_and_what_a_model(tmp_path: Path) -> None:
    saved = save(tmp_path / "r.json", document("a"))
    assert is_saved(saved) and is_saved(f"{saved}[a]") and is_saved(tmp_path / "missing.json")
    other = tmp_path / "results"
    other.write_bytes(saved.read_bytes())
    assert is_saved(other)
    # a safetensors file whose header's length begins with the byte of "{"
    model = tmp_path / "model"
    for width in range(1, 200):
        save_file({"w" * width: np.zeros(4, np.float32)}, model)
        if model.read_bytes()[:1] == b"{":
            break
    else:  # header lengths are padded: none begins so
        model.write_bytes(b"GGUF")
    assert not is_saved(model) and not is_saved(tmp_path) and not is_saved(tmp_path / "x.onnx")


def test_two_documents_become_one(tmp_path: Path) -> None:
    old = open_saved(save(tmp_path / "old.json", document("fp32", "int8")))
    new = open_saved(save(tmp_path / "new.json", document("int8", "int4", numpy="2.5")))
    merged = merge([old, new])
    assert [s.name for s in merged.subjects] == ["fp32", "int8", "int8 (new)", "int4"]
    assert merged.baseline == "fp32" and merged.verb == "compare"
    assert [m.subject for m in merged.measurements] == [s.name for s in merged.subjects]
    assert [q.subject for q in merged.quality] == [s.name for s in merged.subjects]
    # raw samples are those that were saved; turns that were not side by side are no turns
    assert merged.measurements[2].values == new.results.measurements[0].values
    assert [bool(m.blocks) for m in merged.measurements] == [True, True, False, False]
    assert any("one after the other, not side by side" in w for w in merged.warnings)
    assert any("other conditions: numpy: 2.4, 2.5" in w for w in merged.warnings)
    assert merged.settings["documents"][1]["subjects"] == ["int8 (new)", "int4"]
    assert Results.from_json(json.loads(json.dumps(merged.to_json()))).to_json() == merged.to_json()
    found = {
        (c.subject, c.statistic): c.ratio.value
        for c in derive(merged).contrasts
        if c.metric == "latency"
    }
    assert found["int8", "p50"] == pytest.approx(2.0, rel=0.01)
    assert found["int8 (new)", "p50"] == pytest.approx(1.0, rel=0.01)
    assert found["int4", "p50"] == pytest.approx(2.0, rel=0.01)


def test_fidelity_against_another_baseline_is_left_out() -> None:
    old, new = (
        SavedResults("old", document("fp32", "int8")),
        SavedResults("new", document("q8", "q4", digest="b")),
    )
    merged = merge([old, new])
    assert list(merged.fidelity) == ["int8"]
    (lost,) = merged.unavailable
    assert (lost.subject, lost.metric) == ("q4", "fidelity")
    assert "against q8 of new, another baseline" in lost.reason
    assert [s.layers[0].sqnr_db for s in merged.subjects] == [None, 30.0, None, None]
    same = merge([old, SavedResults("new", document("fp32", "int4"))])
    assert list(same.fidelity) == ["int8", "int4"] and not same.unavailable


def test_scores_of_other_samples_are_not_paired() -> None:
    old, new = document("fp32"), document("int8")
    other = tuple(dataclasses.replace(q, how="other digits") for q in new.quality)
    merged = merge(
        [SavedResults("old", old), SavedResults("new", dataclasses.replace(new, quality=other))]
    )
    assert [q.scores for q in merged.quality] == [(0.0, 1.0), ()]
    assert any("accuracy of new was taken otherwise: other digits" in w for w in merged.warnings)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"cpu": "Graviton"},
            r"\(CPU: Xeon, Graviton\); measure both on one, or give --other-mach",
        ),
        ({"onnxruntime": "1.33.0"}, "ONNX Runtime: 1.32.0, 1.33.0"),
        ({"cpu": "i7", "cores": 8}, r"\(CPU: Xeon, i7, and 1 more\)"),
    ],
)
def test_another_machine_is_refused_unless_told(changed: dict[str, Any], says: str) -> None:
    old, new = SavedResults("old", document("a")), SavedResults("new", document("b", **changed))
    with pytest.raises(UsageError, match=says) as caught:
        merge([old, new])
    assert caught.value.exit_code == 2
    merged = merge([old, new], other_machine=True)
    assert any("different machines or versions" in w for w in merged.warnings)
    assert merged.settings["documents"][1]["environment"] == new.results.environment


def test_a_runtime_that_neither_used_decides_nothing() -> None:
    old, new = (
        SavedResults("old", document("a", torch="2.13")),
        SavedResults("new", document("b", torch="2.14")),
    )
    merged = merge([old, new])
    assert any("other conditions: torch: 2.13, 2.14" in w for w in merged.warnings)


def test_one_subject_of_a_document(tmp_path: Path) -> None:
    path = save(tmp_path / "old.json", document("fp32", "int8"))
    one = open_saved(f"{path}[int8]").results
    assert [s.name for s in one.subjects] == ["int8"] and one.baseline == "int8"
    assert {m.subject for m in one.measurements} == {"int8"}
    assert one.fidelity == {} and one.unavailable[0].metric == "fidelity"
    assert open_saved(f"{path}[fp32]").results.unavailable == ()
    with pytest.raises(UsageError, match=r"old.json: has no 'int4'; it has fp32, int8"):
        open_saved(f"{path}[int4]")
    merged = merge([open_saved(f"{path}[int8]"), open_saved(path)])
    assert [s.name for s in merged.subjects] == ["int8", "fp32", "int8 (old)"]


def test_one_document_alone_is_shown_as_it_is(tmp_path: Path) -> None:
    results = document("fp32", "int8")
    merged = merge([SavedResults("r", results)])
    assert merged == dataclasses.replace(results, verb="compare")


def test_names_that_are_taken_again_and_again() -> None:
    documents = [SavedResults("r", document("m")) for _ in range(3)]
    assert [s.name for s in merge(documents).subjects] == ["m", "m (r)", "m (r 2)"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("{}", "no results of edgeopt bench"),
        ("[]", "no results"),
        ('{"edgeopt_proof": 1}', "no results"),
        ('{"edgeopt_results": 2}', "schema version 2, this edgeopt reads 1; measure again"),
        ('{"edgeopt_results": "1"}', "schema version 1, this edgeopt reads"),
        ('{"edgeopt_results": 1}', "incomplete results"),
        ("[" * 100_000, "not JSON"),
        ("\x00", "not JSON"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=says) as caught:
        open_saved(path)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_results_whose_baseline_is_gone(tmp_path: Path) -> None:
    path = save(tmp_path / "r.json", dataclasses.replace(document("a"), baseline="b"))
    with pytest.raises(SourceError, match="its baseline 'b' is not in it"):
        open_saved(path)
    with pytest.raises(SourceError, match=r"missing.json: No such file"):
        open_saved(tmp_path / "missing.json")


def test_fresh_results_against_a_saved_baseline(tmp_path: Path) -> None:
    path = save(tmp_path / "old.json", document("fp32", "int8"))
    merged = against(path, document("int8", "int4"))
    assert [s.name for s in merged.subjects] == ["int8", "int8 (now)", "int4"]
    assert merged.baseline == "int8"
    assert merged.subjects[0].files == (("int8.onnx", 2000),)
    assert [s.name for s in against(path, document("new")).subjects] == ["fp32", "new"]
    assert against(f"{path}[int8]", document("new")).baseline == "int8"
    with pytest.raises(UsageError, match="different machines"):
        against(path, document("new", cpu="other"))
    assert against(path, document("new", cpu="other"), other_machine=True).baseline == "fp32"
