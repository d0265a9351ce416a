"""Whether an artifact is still the file that was written: held against the plan beside it.

A quantized artifact's plan holds the SHA-256 of what was written: of the file itself and of its
weights' file, where those lie beside it. Both stand under the plan's key ``artifact``, which is no
part of the plan: a plan that is replayed elsewhere decides the same without it. That record has a
digest of its own, so that one that was damaged is not taken for one that was never there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.core import Check, Plan, file_sha256
from edgeopt.errors import EdgeoptError, SourceError, UsageError
from edgeopt.files import seal
from edgeopt.files.open import open_source

__all__ = ["Written", "as_written", "check_file", "other_source", "plan_path", "record_of"]

_ANEW = "make it anew from its source: what was proven is another file"


@dataclass(frozen=True)
class Written:
    """What ``edgeopt verify ARTIFACT`` found: checks, and the files that they are about."""

    artifact: Path
    plan: Path | None
    checks: tuple[Check, ...]

    @property
    def unchanged(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
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


def record_of(artifact: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan's key ``artifact`` holds, of what the proof says of the files it read."""
    data = {Path(file["path"]).name: file["sha256"] for file in artifact.get("data", ())}
    record = {"sha256": artifact["sha256"], "data": data}
    return {**record, "digest": _digest_of(record)}


def as_written(artifact: Path) -> tuple[Check, ...]:
    """The checks of ``verify SOURCE ARTIFACT``: by the plan beside it and the digest inside it.

    None where the artifact has neither.
    """
    beside = plan_path(artifact)
    files = _files(artifact, _document(beside)) if beside.exists() else ()
    return (*files, *_sealed(artifact))


def check_file(path: str | Path) -> Written:
    """Hold ``path`` against the digest inside it and the plan beside it: the files' SHA-256, the
    plan's own digest, and what the artifact's metadata says of its source and its plan.

    Raises:
        UsageError: no plan lies beside it, and no digest inside.
        SourceError: the file is not there, or cannot be read.
    """
    artifact = Path(path)
    beside = plan_path(artifact)
    if not artifact.is_file():
        raise SourceError(f"{artifact}: no such file; give an artifact that edgeopt wrote")
    sealed = _sealed(artifact)
    if not beside.exists():
        if not sealed:
            raise UsageError(
                f"{artifact}: {beside.name} is not there, and the file has no digest inside; to"
                f" prove a file without one, give its source: edgeopt verify SOURCE {artifact.name}"
            )
        return Written(artifact, None, sealed)
    document = _document(beside)
    files = _files(artifact, document)
    checks = (*files, *sealed, _plan(document))
    if all(check.passed for check in (*files, *sealed)):
        checks += _metadata(artifact, document)
    return Written(artifact, beside, checks)


def _document(path: Path) -> dict[str, Any]:
    """The plan's file; empty where it is no plan any more."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest_of(record: Mapping[str, Any]) -> str:
    body = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _files(artifact: Path, document: Mapping[str, Any]) -> tuple[Check, ...]:
    record = document.get("artifact")
    if not isinstance(record, dict) or record.get("digest") != _digest_of(record):
        name = plan_path(artifact).name
        found = f"{name}: damaged, or of another program"
        return (Check("digests as they were written", False, found, "those of the file", _ANEW),)
    checks = [_digest("file as it was written", artifact, record["sha256"])]
    for name, sha256 in record["data"].items():
        data = artifact.with_name(Path(name).name)
        checks.append(_digest(f"{data.name} as it was written", data, sha256))
    return tuple(checks)


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
    said = _origin(open_source(artifact).details.get("metadata"))
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


def _origin(metadata: object) -> Mapping[str, Any]:
    """What edgeopt wrote of itself into a file's metadata; empty where it did not."""
    try:
        said = json.loads(metadata.get("edgeopt", "{}")) if isinstance(metadata, dict) else {}
    except (ValueError, TypeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _sealed(artifact: Path) -> tuple[Check, ...]:
    """Whether the file has the digest that it carries; nothing where it carries none."""
    name = "digest that the file carries"
    try:
        opened = open_source(artifact)
        metadata = opened.details.get("metadata")
        said = metadata.get(seal.KEY) if isinstance(metadata, dict) else None
        if said is None and not (opened.kind in _SEALED and _origin(metadata).get("sealed")):
            return ()
        if not isinstance(said, str) or not seal.is_digest(said):
            return (Check(name, False, "removed or damaged", "64 hexadecimal digits", _ANEW),)
        beside = [path for path in opened.files if path.resolve() != artifact.resolve()]
        found = seal.digest_without(artifact, said, beside)
    except (EdgeoptError, OSError) as error:
        return (Check(name, False, f"cannot be read ({error})", "a file as edgeopt wrote", _ANEW),)
    limit = f"{said[:12]}..., of the file that was proven"
    return (Check(name, found == said, f"SHA-256 {found[:12]}...", limit, _ANEW),)


#: Kinds of source in which a digest stands.
_SEALED = frozenset({"onnx", "safetensors"})


def other_source(claimed: object, sha256: str) -> tuple[str, ...]:
    """A note where an artifact names another source than the one at hand."""
    if not isinstance(claimed, str) or not claimed or claimed == sha256:
        return ()
    return (
        f"the artifact says it was made from another file (SHA-256 {claimed[:12]}..., "
        f"this source has {sha256[:12]}...)",
    )
