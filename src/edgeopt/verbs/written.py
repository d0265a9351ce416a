"""Whether an artifact is still the file that was written: held against the plan beside it.

A quantized artifact's plan holds the SHA-256 of what was written: of the file itself and of its
weights' file, where those lie beside it. Both stand under the plan's key ``artifact``, which is no
part of the plan: a plan that is replayed elsewhere decides the same without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.core import Check, Plan
from edgeopt.core.source import file_sha256
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.verbs.output import plan_path

__all__ = ["Written", "as_written", "check_file"]

_ANEW = "make it anew from its source: what was proven is another file"


@dataclass(frozen=True)
class Written:
    """What ``edgeopt verify ARTIFACT`` found: checks, and the files that they are about."""

    artifact: Path
    plan: Path
    checks: tuple[Check, ...]

    @property
    def unchanged(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "verb": "verify",
            "artifact": str(self.artifact),
            "plan": str(self.plan),
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
        lines = [f"edgeopt verify  {self.artifact.name}, by {self.plan.name}", ""]
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


def as_written(artifact: Path) -> tuple[Check, ...]:
    """The check of ``verify SOURCE ARTIFACT``: one, or none where no plan beside it has digests.

    Raises SourceError where the file cannot be read.
    """
    document = _document(plan_path(artifact))
    record = document.get("artifact") if document is not None else None
    return _files(artifact, record) if isinstance(record, dict) else ()


def check_file(path: str | Path) -> Written:
    """Hold ``path`` against the plan beside it: the files' SHA-256, the plan's own digest, and
    what the artifact's metadata says of its source and its plan.

    Raises:
        UsageError: no plan with digests lies beside it.
        SourceError: the file is not there, or cannot be read.
    """
    artifact = Path(path)
    beside = plan_path(artifact)
    if not artifact.is_file():
        raise SourceError(f"{artifact}: no such file; give an artifact that edgeopt wrote")
    document = _document(beside)
    record = None if document is None else document.get("artifact")
    if document is None or not isinstance(record, dict):
        why = "is not there" if not beside.exists() else "holds no digest of what was written"
        raise UsageError(
            f"{artifact}: {beside.name} {why}; to prove a file without one, give its source:"
            f" edgeopt verify SOURCE {artifact.name}"
        )
    checks = (*_files(artifact, record), _plan(document))
    if checks[0].passed:
        checks += _metadata(artifact, document)
    return Written(artifact, beside, checks)


def _document(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _files(artifact: Path, record: Mapping[str, Any]) -> tuple[Check, ...]:
    checks = [_digest("file as it was written", artifact, record.get("sha256"))]
    beside = record.get("data")
    if isinstance(beside, dict):
        for name, sha256 in beside.items():
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
