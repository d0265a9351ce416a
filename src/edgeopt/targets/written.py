"""Whether an artifact is still the file that was written, by the digests that were written with it.

There are two. Every ONNX, GGUF and safetensors file has its own inside
(:mod:`edgeopt.files.seal`). And what lies beside it, the plan of what ``quantize`` wrote, the
description of what ``prune`` and ``distill`` wrote, holds under its key ``artifact`` the SHA-256
of every file that was written, and of the rest of that document itself. The key is no part of a
plan: one that is replayed elsewhere decides the same without it. The record has a digest of its
own, so that one that was damaged is not taken for one that was never there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.core import Check, Plan, file_sha256
from edgeopt.errors import EdgeoptError, SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.files.seal import read_seal

__all__ = [
    "FOLDER_DOCUMENT",
    "Integrity",
    "as_written",
    "check_file",
    "other_source",
    "plan_path",
    "record_of",
    "sign_document",
]

_ANEW = "make it anew from its source: what was proven is another file"


@dataclass(frozen=True)
class Integrity:
    """What ``edgeopt verify ARTIFACT`` found: whether the file is the one that was written.

    Attributes:
        plan: the document beside it that holds its digests; None where they are inside it alone.
        checks: one for each file, and for what they say of each other.
    """

    artifact: Path
    plan: Path | None
    checks: tuple[Check, ...]

    @property
    def unchanged(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        return {
            "verb": "verify",
            "artifact": str(self.artifact),
            "plan": None if self.plan is None else str(self.plan),
            "unchanged": self.unchanged,
            "checks": [
                {
                    "name": check.name,
                    "passed": check.passed,
                    "found": check.found,
                    "limit": check.limit,
                    "advice": check.advice,
                }
                for check in self.checks
            ],
        }

    def __str__(self) -> str:
        by = "the digest inside it" if self.plan is None else self.plan.name
        lines = [f"edgeopt verify  {self.artifact.name}, by {by}", ""]
        for check in self.checks:
            lines.append(f"{'ok    ' if check.passed else 'FAILED'}  {check.name}: {check.found}")
        failed = next((check for check in self.checks if not check.passed), None)
        lines += [
            "",
            "AS WRITTEN  every digest agrees. What it was proven to do: give its source too"
            if failed is None
            else f"CHANGED  since it was written; {failed.advice}",
        ]
        return "\n".join(lines)


def plan_path(artifact: Path) -> Path:
    """The plan's file beside an artifact: ``model-int8.onnx`` -> ``model-int8.onnx.plan.json``.

    Under the whole name: ``model.onnx`` and ``model.gguf`` in one folder each keep their own.
    """
    return artifact.with_name(f"{artifact.name}.plan.json")


def record_of(artifact: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """What the key ``artifact`` of a document beside an artifact holds.

    Args:
        artifact: what the proof says of the files: ``sha256`` (None for a folder) and ``data``.
        document: the rest of that document.
    """
    data = {str(file["name"]): file["sha256"] for file in artifact.get("data", ())}
    record = {"sha256": artifact["sha256"], "data": data, "document": _digest_of(document)}
    return {**record, "digest": _digest_of(record)}


def sign_document(artifact: Path, document: Path, beside: Iterable[Path] = ()) -> None:
    """Put the record of ``artifact`` and the files ``beside`` it into the JSON in ``document``.

    A folder's files are named from it; others by what follows the stem that they share with the
    artifact, so that what is written does not depend on its name.
    """
    body = json.loads(document.read_text(encoding="utf-8"))
    body.pop("artifact", None)
    folder = artifact.is_dir()
    files = (p for p in beside if p != document)
    data = [
        {
            "name": path.relative_to(artifact).as_posix()
            if folder
            else f"*{path.name.removeprefix(artifact.stem)}",
            "sha256": file_sha256(path),
        }
        for path in files
    ]
    found = {"sha256": None if folder else file_sha256(artifact), "data": data}
    text = json.dumps({**body, "artifact": record_of(found, body)}, indent=1, ensure_ascii=False)
    document.write_text(text + "\n", encoding="utf-8")


def as_written(artifact: Path) -> tuple[Check, ...]:
    """The checks of ``verify SOURCE ARTIFACT``; none where the file has no digest of edgeopt's."""
    beside = _beside(artifact)
    return _files(artifact, beside) if beside is not None else _sealed(artifact)


def check_file(path: str | Path) -> Integrity:
    """Hold ``path`` against what was written with it: the files' SHA-256, the plan's own digest,
    and what the artifact's metadata says of its source and its plan.

    Raises:
        UsageError: it has no digest inside, and none lies beside it.
        SourceError: the file is not there, or cannot be read.
    """
    artifact = Path(path)
    if not artifact.exists():
        raise SourceError(f"{artifact}: no such file; give an artifact that edgeopt wrote")
    beside = _beside(artifact)
    try:
        checks = as_written(artifact)
    except OSError as error:
        raise SourceError(f"{artifact}: {error.strerror or error}") from error
    if not checks:
        raise UsageError(
            f"{artifact}: has no digest of edgeopt's inside, and {plan_path(artifact).name} is not"
            " there; to prove a file without one, give its source: edgeopt verify SOURCE"
            f" {artifact.name}"
        )
    if beside is not None and beside == plan_path(artifact):
        document = _document(beside)
        checks += (_plan(document),)
        if all(check.passed for check in checks):
            checks += _metadata(artifact, document)
    return Integrity(artifact, beside, checks)


#: The description that lies in a folder which ``prune`` or ``distill`` wrote.
FOLDER_DOCUMENT = "edgeopt.json"


def _beside(artifact: Path) -> Path | None:
    """The document that was written with an artifact, where it is there: a plan, or the
    description of a program, which other programs' ``model.json`` is not."""
    if artifact.is_dir():
        found = artifact / FOLDER_DOCUMENT
        return found if found.exists() else None
    if (plan := plan_path(artifact)).exists():
        return plan
    described = artifact.with_name(f"{artifact.stem}.json")
    if described == artifact or not described.is_file():
        return None
    with described.open("rb") as stream:
        head = stream.read(1 << 20)
    return described if b'"edgeopt_pruned"' in head or b'"artifact"' in head else None


def _document(path: Path) -> dict[str, Any]:
    """The plan's file; empty where it is no plan any more."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of a document as JSON, keys in order, but for where digests stand."""
    body = {key: value for key, value in record.items() if key not in ("digest", "artifact")}
    plain = json.loads(json.dumps(body))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _files(artifact: Path, beside: Path) -> tuple[Check, ...]:
    document = _document(beside)
    record = document.get("artifact")
    if not isinstance(record, dict) or record.get("digest") != _digest_of(record):
        found = f"{beside.name}: damaged, or of another program"
        return (Check("digests as they were written", False, found, "those of the file", _ANEW),)
    checks = []
    if record["sha256"] is not None:
        checks.append(_digest("file as it was written", artifact, record["sha256"]))
    root = artifact if artifact.is_dir() else artifact.parent
    for name, sha256 in record["data"].items():
        if name.startswith("*"):
            name = f"{artifact.stem}{name[1:]}"
        data = root / (name if artifact.is_dir() else Path(name).name)
        if not data.resolve().is_relative_to(root.resolve()):
            continue  # a record that points elsewhere was written by nobody here
        checks.append(_digest(f"{name} as it was written", data, sha256))
    written = record.get("document")
    if written is not None and written != (found := _digest_of(document)):
        limit = f"{str(written)[:12]}..."
        name = f"{beside.name} as it was written"
        checks.append(Check(name, False, f"digest {found[:12]}...", limit, _ANEW))
    return tuple(checks)


def _sealed(artifact: Path) -> tuple[Check, ...]:
    """The check of the digest that a file has inside."""
    if artifact.is_dir():
        return ()
    name = "file as it was written"
    seal = read_seal(artifact)
    if seal.written is not None and not seal.whole and (others := _belonging(artifact)):
        seal = read_seal(artifact, others)
        name = f"file, and {', '.join(path.name for path in others)}, as they were written"
    if seal.written is None or seal.found is None:
        if not seal.ours:
            return ()
        found = "its digest is damaged, or was taken out"
        return (Check(name, False, found, "the digest that edgeopt writes", _ANEW),)
    return (
        Check(
            name,
            seal.whole,
            f"SHA-256 {seal.found[:12]}...",
            f"{seal.written[:12]}..., which the file names",
            _ANEW,
        ),
    )


def _belonging(artifact: Path) -> list[Path]:
    """The files of weights that an artifact names, or that lies beside it where it says nothing."""
    try:
        files = open_source(artifact).files
    except EdgeoptError:
        files = ()
    named = [path for path in files if path.resolve() != artifact.resolve()]
    data = artifact.with_name(f"{artifact.name}.data")
    return named or ([data] if data.is_file() else [])


def _digest(name: str, path: Path, written: object) -> Check:
    try:
        found = file_sha256(path)
    except OSError as error:
        return Check(name, False, f"{error.strerror}", f"SHA-256 {str(written)[:12]}...", _ANEW)
    return Check(
        name,
        found == written,
        f"SHA-256 {found[:12]}...",
        f"{str(written)[:12]}..., of the file that was proven",
        _ANEW,
    )


def _plan(document: Mapping[str, Any]) -> Check:
    """Whether the plan still decides what its own digest says."""
    try:
        found = Plan.from_json(document).digest()
    except ValueError as error:
        found = str(error)
    written = str(document.get("digest"))
    return Check(
        "plan as it was written",
        found == written,
        f"digest {found[:12]}...",
        f"{written[:12]}...",
        "make the artifact anew: its plan was edited since",
    )


def _metadata(artifact: Path, document: Mapping[str, Any]) -> tuple[Check, ...]:
    """What ONNX files and packed weights say themselves of where they are from."""
    metadata = open_source(artifact).details.get("metadata", {})
    try:
        said = json.loads(metadata.get("edgeopt", "{}"))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()
    if not isinstance(said, dict):
        return ()
    pairs = (
        ("source", "source_sha256", "source_sha256"),
        ("plan", "plan_sha256", "digest"),  # in ONNX
        ("plan", "plan", "digest"),  # in packed weights
    )
    return tuple(
        Check(
            f"{name} that the file names",
            said[key] == document.get(other),
            f"SHA-256 {str(said[key])[:12]}...",
            f"{str(document.get(other))[:12]}...",
            "find the plan that this file was written with",
        )
        for name, key, other in pairs
        if said.get(key) is not None
    )


def other_source(claimed: object, sha256: str) -> tuple[str, ...]:
    """A note where an artifact names another source than the one at hand."""
    if not isinstance(claimed, str) or not claimed or claimed == sha256:
        return ()
    return (
        f"the artifact says it was made from another file (SHA-256 {claimed[:12]}..., "
        f"this source has {sha256[:12]}...)",
    )
