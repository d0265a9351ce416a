"""Saved results: recognised, read, and put together into one document that can be compared.

Subjects of two documents did not run side by side. What the machine did meanwhile falls on one of
them alone, so that their samples are compared unpaired, and the document says so.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.core import Fidelity, Measurement, Results, Unavailable
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.reading import read_head
from edgeopt.files.sniff import recognise
from edgeopt.measure.environment import CONDITIONS, MACHINE, differences

__all__ = ["SavedResults", "against", "file_of", "is_saved", "merge", "open_all", "open_saved"]

#: Runtimes, and the versions in an environment that decide how fast each is.
_VERSIONS: Mapping[str, str] = {
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "llama.cpp": "llama-cpp-python",
}

#: results.json[subject]
_CHOSEN = re.compile(r"(?P<path>.+)\[(?P<subject>[^\[\]]+)\]")


@dataclasses.dataclass(frozen=True)
class SavedResults:
    """A document and the name that its subjects get where theirs are taken."""

    label: str
    results: Results


def is_saved(item: str | Path) -> bool:
    """Whether ``item`` is a file of saved results, or names a subject of one: R.json[NAME]."""
    path, _ = _split(item)
    if not path.is_file():
        return path.suffix == ".json"
    head = read_head(path)
    if path.suffix == ".json":
        return True
    return head.lstrip()[:1] == b"{" and recognise(path, head) is None


def open_saved(item: str | Path) -> SavedResults:
    """Read ``R.json``, or of ``R.json[NAME]`` the one subject.

    Raises SourceError where it holds no results, or results of another schema version, UsageError
    where it has no such subject.
    """
    path, name = _split(item)
    results = Results.load(path)
    names = [s.name for s in results.subjects]
    if results.baseline not in names:
        raise SourceError(f"{path}: its baseline {results.baseline!r} is not in it; measure again")
    if name:
        if name not in names:
            raise UsageError(f"{path}: has no {name!r}; it has {', '.join(names)}")
        results = _only(results, name)
    return SavedResults(path.stem, results)


def merge(documents: Sequence[SavedResults], *, other_machine: bool = False) -> Results:
    """One document of all subjects; the baseline is the first document's own.

    A subject whose name is taken has its document's label added. Fidelity and tensor errors of a
    document with another baseline are left out: they say nothing against this one.

    Raises UsageError where the documents come from machines or runtimes that differ, unless
    ``other_machine``; what differs is a warning then.
    """
    first = documents[0].results
    if len(documents) == 1:
        return dataclasses.replace(first, verb="compare")
    base = first.subject(first.baseline)
    parts = [_renamed(documents[0], _names(documents[0], ()))]
    taken = [s.name for s in first.subjects]
    warnings: list[str] = []
    for document in documents[1:]:
        warnings += _machines(documents[0], document, other_machine)
        names = _names(document, taken)
        part = _renamed(document, names)
        # Turns of another document did not run beside these: without their blocks they cannot be
        # paired by mistake.
        part = dataclasses.replace(
            part, measurements=tuple(_unpaired(m) for m in part.measurements)
        )
        if _base_digest(part) != base.sha256 or not base.sha256:
            part = _without_fidelity(part, document.label)
        part, unlike = _comparable_quality(first, part, document.label)
        warnings += unlike
        taken += [s.name for s in part.subjects]
        parts.append(part)
    labels = ", ".join(document.label for document in documents)
    warnings.append(
        f"{labels} were measured one after the other, not side by side: what the machine did "
        "meanwhile is in their differences"
    )
    return dataclasses.replace(
        first,
        verb="compare",
        subjects=tuple(s for part in parts for s in part.subjects),
        measurements=tuple(m for part in parts for m in part.measurements),
        settings={
            **first.settings,
            "fidelity_on": _stands_on(parts),
            "documents": [
                {
                    "label": document.label,
                    "made": document.results.made,
                    "subjects": [s.name for s in part.subjects],
                    "environment": dict(document.results.environment),
                    "settings": dict(document.results.settings),
                }
                for document, part in zip(documents, parts, strict=True)
            ],
        },
        fidelity={name: f for part in parts for name, f in part.fidelity.items()},
        quality=tuple(q for part in parts for q in part.quality),
        unavailable=tuple(dict.fromkeys(u for part in parts for u in part.unavailable)),
        warnings=tuple(dict.fromkeys([*(w for part in parts for w in part.warnings), *warnings])),
    )


def _stands_on(parts: Sequence[Results]) -> str:
    """What the fidelity of all of them stands on; empty where it is not the same."""
    told = {str(part.settings.get("fidelity_on", "")) for part in parts if part.fidelity}
    return told.pop() if len(told) == 1 else ""


def against(baseline: str | Path, results: Results, *, other_machine: bool = False) -> Results:
    """Fresh ``results`` compared with a saved document: ``bench --baseline``.

    The baseline is the saved subject that was asked for (``R.json[NAME]``), the only one, the one
    that is called as the first of the fresh ones, or the document's own baseline. Raises as
    :func:`open_saved` and :func:`merge` do.
    """
    saved = open_saved(baseline)
    names = [s.name for s in saved.results.subjects]
    wanted = results.subjects[0].name
    name = wanted if wanted in names else saved.results.baseline
    only = dataclasses.replace(saved, results=_only(saved.results, name))
    return merge([only, SavedResults("now", results)], other_machine=other_machine)


def file_of(item: str | Path) -> Path:
    """The file that ``item`` names, without the subject of a document: what is not to be
    written to."""
    return _split(item)[0]


def _split(item: str | Path) -> tuple[Path, str]:
    path = Path(item)
    found = _CHOSEN.fullmatch(str(item))
    if found is None or path.exists():
        return path, ""
    return Path(found["path"]), found["subject"]


def open_all(items: Mapping[int, str | Path]) -> dict[int, SavedResults]:
    """Saved results by position, those of one file as one document, in the place of the first of
    them: what was measured side by side stays so.

    ``R.json[a]`` and ``R.json[b]`` are the two subjects of ``R.json``, the first of them the
    baseline; what was found of the others against each other is kept where that is the file's own
    baseline, too. Raises as :func:`open_saved`.
    """
    chosen: dict[Path, list[str]] = {}
    order: dict[int, Path] = {}
    for position, item in items.items():
        path, name = _split(item)
        key = path.resolve()
        if key not in chosen:
            order[position] = path
        names = chosen.setdefault(key, [])
        if name in names:
            raise UsageError(f"{item}: is given twice; name another of its artifacts")
        names.append(name)
    documents = {}
    for position, path in order.items():
        names = chosen[path.resolve()]
        if len(names) == 1:
            documents[position] = open_saved(f"{path}[{names[0]}]" if names[0] else path)
            continue
        whole = open_saved(path)
        if "" in names:
            raise UsageError(f"{path}: is given whole and in part; give one of the two")
        for name in names:
            open_saved(f"{path}[{name}]")  # says which it does not have
        documents[position] = SavedResults(whole.label, _some(whole.results, names))
    return documents


def _some(results: Results, names: Sequence[str]) -> Results:
    """Several subjects of one document, the first of them the baseline."""
    some = dataclasses.replace(
        results,
        subjects=tuple(results.subject(name) for name in names),
        measurements=tuple(m for m in results.measurements if m.subject in names),
        fidelity={k: v for k, v in results.fidelity.items() if k in names},
        quality=tuple(q for q in results.quality if q.subject in names),
        unavailable=tuple(u for u in results.unavailable if u.subject in ("", *names)),
    )
    if results.baseline == names[0]:
        return some
    return _without_fidelity(dataclasses.replace(some, baseline=names[0]), results.baseline)


def _only(results: Results, name: str) -> Results:
    """The document of one subject. It loses its partners, and keeps what it was found to be."""
    own = results.baseline == name
    only = dataclasses.replace(
        results,
        subjects=(results.subject(name),),
        measurements=tuple(m for m in results.measurements if m.subject == name),
        fidelity={k: v for k, v in results.fidelity.items() if k == name},
        quality=tuple(q for q in results.quality if q.subject == name),
        unavailable=tuple(u for u in results.unavailable if u.subject in ("", name)),
    )
    if own:
        return only
    return _without_fidelity(dataclasses.replace(only, baseline=name), results.baseline)


def _names(document: SavedResults, taken: Sequence[str]) -> dict[str, str]:
    """Old name -> one that nobody has."""
    names: dict[str, str] = {}
    for subject in document.results.subjects:
        candidates = (
            subject.name,
            f"{subject.name} ({document.label})",
            *(f"{subject.name} ({document.label} {n})" for n in range(2, len(taken) + 3)),
        )
        used = {*taken, *names.values()}
        names[subject.name] = next(name for name in candidates if name not in used)
    return names


def _renamed(document: SavedResults, names: Mapping[str, str]) -> Results:
    results = document.results

    def renamed(part: Any) -> Any:
        return dataclasses.replace(part, subject=names.get(part.subject, part.subject))

    return dataclasses.replace(
        results,
        baseline=names.get(results.baseline, results.baseline),
        subjects=tuple(dataclasses.replace(s, name=names[s.name]) for s in results.subjects),
        measurements=tuple(map(renamed, results.measurements)),
        fidelity={names.get(name, name): f for name, f in results.fidelity.items()},
        quality=tuple(map(renamed, results.quality)),
        unavailable=tuple(map(renamed, results.unavailable)),
    )


def _unpaired(measurement: Measurement) -> Measurement:
    return dataclasses.replace(measurement, blocks=())


def _base_digest(results: Results) -> str:
    return next((s.sha256 for s in results.subjects if s.name == results.baseline), "")


def _without_fidelity(results: Results, where: str) -> Results:
    """Without what was found against another baseline than the one at hand."""
    lost: dict[str, tuple[Fidelity, ...]] = {k: v for k, v in results.fidelity.items() if v}
    reason = f"it was measured against {results.baseline} of {where}, another baseline"
    subjects = tuple(
        dataclasses.replace(
            s, layers=tuple(dataclasses.replace(layer, sqnr_db=None) for layer in s.layers)
        )
        for s in results.subjects
    )
    return dataclasses.replace(
        results,
        subjects=subjects,
        fidelity={},
        unavailable=(
            *results.unavailable,
            *(Unavailable(name, "fidelity", reason) for name in lost),
        ),
    )


def _comparable_quality(first: Results, part: Results, where: str) -> tuple[Results, list[str]]:
    """Scores of single samples are told apart from those of other samples, and dropped."""
    hows = {q.metric: q.how for q in first.quality}
    unlike = {
        q.metric: f"{q.metric} of {where} was taken otherwise: {q.how}; the first: {hows[q.metric]}"
        for q in part.quality
        if hows.get(q.metric, q.how) != q.how
    }
    quality = tuple(
        dataclasses.replace(q, scores=()) if q.metric in unlike else q for q in part.quality
    )
    return dataclasses.replace(part, quality=quality), list(unlike.values())


def _machines(first: SavedResults, other: SavedResults, other_machine: bool) -> list[str]:
    """Warnings; UsageError where figures must not be compared and nobody said that they may."""
    one, two = first.results.environment, other.results.environment
    runtimes = {s.runtime for saved in (first, other) for s in saved.results.subjects}
    versions = {_VERSIONS[name] for name in runtimes & _VERSIONS.keys()}
    deciding = {**MACHINE, **{k: v for k, v in CONDITIONS.items() if k in versions}}
    rest = {k: v for k, v in CONDITIONS.items() if k not in deciding}
    found = differences(one, two, deciding)
    if found and not other_machine:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise UsageError(
            f"{first.label} and {other.label} come from different machines or versions "
            f"({found[0]}{more}); measure both on one, or give --other-machine"
        )
    who = f"{first.label} and {other.label}"
    return [
        *(f"{who} come from different machines or versions: {text}" for text in found),
        *(f"{who} were measured in other conditions: {t}" for t in differences(one, two, rest)),
    ]
