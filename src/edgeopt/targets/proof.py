"""The one place that makes a proof: what every target says of its source and artifact, one way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeopt.core import (
    Change,
    Fidelity,
    Measurement,
    Plan,
    Proof,
    Source,
    TensorFidelity,
    Verdict,
)

__all__ = ["proof_of"]

#: What the figures are of where no inputs were run.
_WEIGHTS = "the weights themselves, the worst first"


def proof_of(
    verb: str,
    source: Source,
    final: Path,
    verdict: Verdict,
    *,
    form: str,
    nbytes: int,
    environment: Mapping[str, Any],
    source_sha256: str = "",
    sha256: str = "",
    of_source: Mapping[str, Any] | None = None,
    of_artifact: Mapping[str, Any] | None = None,
    coverage: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    changes: Iterable[Change] = (),
    fidelity: Iterable[Fidelity] = (),
    tensors: Iterable[TensorFidelity] = (),
    samples: str = _WEIGHTS,
    measurements: Iterable[Measurement] = (),
    usage: str = "",
    notes: Iterable[str] = (),
) -> Proof:
    """The proof of ``form``, an artifact of ``nbytes`` that is or will be called ``final``.

    ``source_sha256`` and ``sha256`` are left out where empty (folders, and sources that are not
    read for it); ``of_source`` and ``of_artifact`` are what else the document says of them.
    """
    return Proof(
        verb=verb,
        source={
            "path": str(source.path),
            "kind": source.kind,
            "nbytes": source.nbytes,
            **({"sha256": source_sha256} if source_sha256 else {}),
            **(of_source or {}),
        },
        artifact={
            "path": str(final),
            "format": form,
            "nbytes": nbytes,
            **({"sha256": sha256} if sha256 else {}),
            **(of_artifact or {}),
        },
        plan=plan,
        changes=tuple(changes),
        coverage=coverage or {},
        fidelity=tuple(fidelity),
        samples=samples,
        measurements=tuple(measurements),
        environment=environment,
        verdict=verdict,
        usage=usage,
        notes=tuple(notes),
        tensors=tuple(tensors),
    )
