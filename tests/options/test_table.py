"""What is said once of an option holds wherever it is met: click, Python, its documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import pytest

import edgeopt
from edgeopt.cli import cli
from edgeopt.errors import UsageError
from edgeopt.options.option import options_of
from edgeopt.options.table import (
    BenchOptions,
    CompareOptions,
    Distill,
    Export,
    Prune,
    Quantize,
    Verify,
    flag_of,
)
from edgeopt.verbs.quantize import make_plan

VERBS: dict[str, tuple[type, Callable[..., Any]]] = {
    "quantize": (Quantize, edgeopt.quantize),
    "export": (Export, edgeopt.export),
    "verify": (Verify, edgeopt.verify),
    "bench": (BenchOptions, edgeopt.bench),
    "compare": (CompareOptions, edgeopt.compare),
    "prune": (Prune, edgeopt.prune),
    "distill": (Distill, edgeopt.distill),
}
#: What the command line alone has: what is done with results when they are there.
SHOWN = {"as_json", "reports", "charts", "chart_format", "fail_if", "plot"}


@pytest.mark.parametrize("verb", VERBS)
def test_click_has_the_options_of_the_table(verb: str) -> None:
    kind, _ = VERBS[verb]
    typed = {p.name: p for p in cli.commands[verb].params if isinstance(p, click.Option)}
    said = {name: one for name, one in options_of(kind).items() if one.help is not None}
    assert typed.keys() - SHOWN == said.keys()
    for name, one in said.items():
        assert typed[name].help == one.help
        assert flag_of(name) in typed[name].opts


@pytest.mark.parametrize("verb", VERBS)
def test_python_has_and_documents_them(verb: str) -> None:
    kind, function = VERBS[verb]
    parameters = inspect.signature(function).parameters
    for name in options_of(kind):
        default = inspect.signature(kind).parameters[name].default
        assert parameters[name].default == default
        assert f"\n        {name}: " in inspect.getdoc(function).replace("\n    ", "\n        ")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0),
        ("threads", np.int64(-3)),
        ("threads", 10**9),
        ("min_same", 2),
        ("min_same", float("nan")),
        ("min_same", -0.1),
        ("chunks", 0),
        ("context", 1),
    ],
)
@pytest.mark.parametrize("function", [edgeopt.quantize, make_plan, edgeopt.export, edgeopt.verify])
def test_a_number_out_of_range_is_named_before_anything_is_read(
    function: Callable[..., Any], name: str, value: Any
) -> None:
    with pytest.raises(UsageError, match=f"{flag_of(name)} .*give"):
        function("missing.onnx", "out.onnx", **{name: value})


def test_no_threads_at_all_are_named() -> None:
    with pytest.raises(UsageError, match="--threads: give one number or more"):
        edgeopt.bench("missing.onnx", threads=[])


@pytest.mark.parametrize(
    ("method", "given", "says"),
    [
        ("depth", {"scope": "layer"}, "--scope"),
        ("magnitude", {"heads": False}, "--heads"),
        ("channels", {"ratio": 0.5, "precision": "fp32"}, "--precision has no meaning without"),
        ("channels", {"ratio": 0.5, "accumulation": 1}, "--accumulation has no meaning without"),
    ],
)
def test_a_default_that_is_given_counts_for_pruning_and_training(
    method: str, given: dict[str, Any], says: str
) -> None:
    pytest.importorskip("torch", reason="pruning is of torch modules")
    with pytest.raises(UsageError, match=says):
        edgeopt.prune("missing.pt", method=method, **given)
