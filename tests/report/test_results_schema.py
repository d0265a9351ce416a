"""Documents are what the published schema says, and the schema says no less than the code."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report import results_of

from edgeopt.core import METRICS, RESULTS_VERSION
from edgeopt.numerics.derive import PERCENTILES, derive

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "results.schema.json").read_text(encoding="utf-8"))

jsonschema = pytest.importorskip("jsonschema")


def violations(document: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return [
        f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)
    ]


def written(maker: str) -> Any:
    results = getattr(results_of, maker)()
    whole = {**results.to_json(), "derived": derive(results).to_json()}
    # every sample is like the next: a few will do, for the validator looks at each
    for m in whole["measurements"]:
        m["values"] = [values[:4] for values in m["values"]]
    return json.loads(json.dumps(whole))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["edgeopt_results"]["const"] == RESULTS_VERSION


@pytest.mark.parametrize(
    "maker", ["two", "three", "gguf", "weights", "failed", "single", "hostile"]
)
def test_documents_are_valid_with_and_without_what_is_derived(maker: str) -> None:
    document = written(maker)
    assert violations(document) == []
    del document["derived"]
    assert violations(document) == []


def test_metrics_and_percentiles_are_the_codes() -> None:
    measurement = SCHEMA["$defs"]["measurement"]["properties"]
    assert set(measurement["metric"]["enum"]) == set(METRICS)
    assert set(measurement["unit"]["enum"]) == {metric.unit for metric in METRICS.values()}
    figures = SCHEMA["$defs"]["row"]["properties"]["figures"]["propertyNames"]["enum"]
    assert set(PERCENTILES) < set(figures)


def test_the_words_name_every_part_and_every_metric() -> None:
    words = (DOCS / "results.md").read_text(encoding="utf-8")
    for name in (*SCHEMA["properties"], *METRICS):
        assert f"`{name}`" in words, name


def broken() -> Iterator[tuple[str, Any]]:
    whole = written("two")

    def changed(*path: Any, to: Any) -> Any:
        document = copy.deepcopy(whole)
        part = document
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = to
        return document

    yield "another version", changed("edgeopt_results", to=2)
    yield "a metric of no name", changed("measurements", 0, "metric", to="speed")
    yield "a sample that is a word", changed("measurements", 0, "values", 0, 0, to="fast")
    yield "negative bytes", changed("subjects", 0, "files", 0, 1, to=-1)
    yield "a share above one", changed("fidelity", "minilm.int8.onnx", 0, "top1", to=1.5)
    yield "a verdict of no name", changed("derived", "contrasts", 0, "verdict", to="great")
    yield "a reason that is none", changed("unavailable", 0, "reason", to="")
    del whole["warnings"]
    yield "a part missing", whole


@pytest.mark.parametrize(
    ("what", "document"), list(broken()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_is_none_is_refused(what: str, document: Any) -> None:
    assert violations(document)
