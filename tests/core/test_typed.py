"""Documents read back: what was written comes back, what was changed is refused by its place."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from tests.report import results_of

from edgeopt.core import Results
from edgeopt.core.typed import WrongPart, read
from edgeopt.errors import SourceError
from edgeopt.numerics.derive import derive
from edgeopt.report.results_files import SUFFIXES


@dataclass(frozen=True)
class Inner:
    name: str
    share: float | None = None


@dataclass(frozen=True)
class Outer:
    count: int
    sound: bool
    pairs: tuple[tuple[str, int], ...]
    inner: Mapping[str, Inner]
    free: Any = None


WHOLE = {
    "count": 3,
    "sound": True,
    "pairs": [["a", 1], ["b", 2]],
    "inner": {"x": {"name": "n", "share": 0.5}, "y": {"name": "m"}},
    "free": {"any": ["thing"]},
}


def test_a_document_comes_back() -> None:
    assert read(Outer, WHOLE) == Outer(
        3,
        True,
        (("a", 1), ("b", 2)),
        {"x": Inner("n", 0.5), "y": Inner("m")},
        {"any": ["thing"]},
    )


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("count",), 1.5, "count is 1.5, not a whole number"),
        (("count",), True, "count is True, not a whole number"),
        (("count",), 1 << 70, "count is 1180591620717411303424, not a count"),
        (("sound",), 1, "sound is 1, not true or false"),
        (("pairs",), {}, "pairs is {}, not a list"),
        (("pairs", 1), ["b"], r"pairs\[1\] has 1 parts, not 2"),
        (("pairs", 1, 0), None, r"pairs\[1\]\[0\] is None, not text"),
        (("inner",), [], r"inner is \[\], not an object"),
        (("inner", "x", "share"), "much", "inner.x.share is 'much', not a number"),
        (("inner", "x", "share"), math.nan, "inner.x.share is nan, not a number that JSON has"),
        (("inner", "x", "share"), 1e300, "not a number that JSON has"),
        (("inner", "x", "name"), "\ud800", r"inner.x.name is '\\ud800', not text"),
        (("inner", "x", "name"), ["long" * 99], r"inner.x.name is \['long.*\.\.\., not text"),
        (("inner", "x", "nmae"), "n", "inner.x.nmae is nothing that belongs there"),
    ],
)
def test_what_is_of_another_kind_is_named(path: tuple[Any, ...], value: Any, says: str) -> None:
    with pytest.raises(WrongPart, match=says) as caught:
        read(Outer, changed(WHOLE, path, value))
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("path", "says"), [(("sound",), "sound is missing"), (("inner", "y", "name"), "y.name is mis")]
)
def test_what_is_missing_is_named(path: tuple[Any, ...], says: str) -> None:
    document = copy.deepcopy(WHOLE)
    part = document
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    with pytest.raises(WrongPart, match=says):
        read(Outer, document)


def test_numbers_that_json_lacks_are_words() -> None:
    assert read(float, "inf") == math.inf and math.isnan(read(float, "nan"))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    document = copy.deepcopy(document)
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return document


# ---------------------------------------------------------------------------------------------
# results

ODD = [None, True, -1, 0, 1e299, "nan", "inf", "x", "", [], {}, [[]], [None], ["a"], 1 << 70]
ODD += [-0.5, {"a": 1}, "<b>", float("nan"), "\ud800", "\x1b[31m", ["nan"], [[0.0]], [[-1.0] * 8]]


def small() -> Any:
    """A document with few samples."""
    document = results_of.two().to_json()
    for measurement in document["measurements"]:
        measurement["values"] = [values[:4] for values in measurement["values"]]
        measurement["blocks"] = [[2, 2] for _ in measurement["blocks"]]
    return json.loads(json.dumps(document))


def places(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(part, dict):
        for name in part:
            yield from places(part[name], (*path, name))
    elif isinstance(part, list):
        for i in range(min(3, len(part))):
            yield from places(part[i], (*path, i))


@pytest.mark.no_cover  # its lines are covered; a tracer would take most of the time
def test_whatever_is_changed_is_refused_or_can_be_shown() -> None:
    whole, refused, shown = small(), 0, 0
    draw = random.Random(3)
    where = list(places(whole))
    forms = [SUFFIXES[suffix] for suffix in (".txt", ".md", ".csv", ".json")]
    for i in range(200):
        document = changed(whole, draw.choice(where), draw.choice(ODD))
        try:
            results = Results.from_json(document, "r.json")
        except SourceError as error:
            assert str(error).startswith("r.json: ") and "\n" not in str(error)
            assert len(str(error)) < 300
            refused += 1
            continue
        shown += 1
        if i % 8 == 0:
            derived = derive(results)
            for form in forms:
                form(results, derived).encode()
    assert refused > 60 and shown > 40
