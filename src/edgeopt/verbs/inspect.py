"""Why a model file is so big: bytes by cause and by layer group, findings, predicted sizes.

Runs no code from the file, needs no torch, and of a large file reads little more than the
descriptions of its tensors.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from edgeopt.anatomy.attribution import Attribution, attribute
from edgeopt.anatomy.findings import Evidence, Finding, findings, is_embedding
from edgeopt.anatomy.groups import TensorGroup, group
from edgeopt.anatomy.predictions import Prediction, predictions
from edgeopt.anatomy.scan import Scan, scan
from edgeopt.core import Progress, Source, format_bytes
from edgeopt.files.open import open_source
from edgeopt.files.sparse import sparsity
from edgeopt.verbs.calling import verb

__all__ = ["INSPECTION_VERSION", "Cause", "Inspection", "inspect"]

INSPECTION_VERSION = 1


@dataclass(frozen=True)
class Cause:
    """Bytes of one of the four causes of size, and what they consist of, in bytes by name."""

    name: str
    nbytes: int
    parts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect` found. The bytes of ``causes`` add up to ``nbytes``, exactly.

    ``nbytes`` counts all files (of a folder: everything in it). ``read`` of ``readable`` bytes of
    weights were read for findings that depend on values.
    """

    path: str
    kind: str
    nbytes: int
    parameters: int
    tensors: int
    dtypes: tuple[tuple[str, int], ...]
    needs_trust: str | None
    causes: tuple[Cause, ...]
    groups: tuple[TensorGroup, ...]
    findings: tuple[Finding, ...]
    predictions: tuple[Prediction, ...]
    notes: tuple[str, ...]
    read: int
    readable: int

    def to_json(self) -> dict[str, Any]:
        """The versioned document, ready for JSON."""
        document = dataclasses.asdict(self)
        for cause in document["causes"]:
            cause["parts"] = dict(cause["parts"])
        document["dtypes"] = dict(self.dtypes)
        return {"edgeopt_inspection": INSPECTION_VERSION, **document}


@verb()
def inspect(
    path: str | os.PathLike[str], *, deep: bool = False, progress: Progress | None = None
) -> Inspection:
    """Say what a model file (or folder) consists of, and what would make it smaller.

    Findings that depend on values read a small model whole, and of a large one the beginning of
    every tensor; ``deep`` reads everything. Raises SourceError and FormatError as opening does.
    """
    source = open_source(path)
    attribution = attribute(source)
    tensors, own = attribution.tensors, attribution.own
    seen = scan(tensors, own, deep=deep, progress=progress)
    total = int(source.details.get("folder_bytes", source.nbytes))
    tables = {w.shape for w in source.weights if is_embedding(w)}
    evidence = Evidence(
        source,
        attribution,
        seen,
        total,
        frozenset(i for i, weight in enumerate(tensors) if is_embedding(weight, tables)),
    )
    model = [i for i, tensor in enumerate(tensors) if tensor.role in ("weight", "buffer")]
    return Inspection(
        path=str(source.path),
        kind=source.kind,
        nbytes=total,
        parameters=_parameters(attribution),
        tensors=len(source.weights),
        dtypes=tuple(Counter(t.dtype for t in source.weights).most_common()),
        needs_trust=source.needs_trust,
        causes=_causes(evidence),
        groups=group((tensors[i].name, own[i]) for i in model),
        findings=findings(evidence),
        predictions=predictions(source, frozenset(tensors[i].name for i in seen.copies), deep=deep),
        notes=tuple(_notes(source, attribution, seen)),
        read=seen.read,
        readable=seen.total,
    )


def _parameters(attribution: Attribution) -> int:
    """Numbers in the model's weights; shared ones count once."""
    return sum(
        tensor.size
        for tensor, own in zip(attribution.tensors, attribution.own, strict=True)
        if tensor.role == "weight" and own
    )


_TRAINING = {"optimizer": "optimizer state", "ema": "averaged weights (EMA)"}


def _causes(evidence: Evidence) -> tuple[Cause, ...]:
    attribution, total = evidence.attribution, evidence.total
    architecture: Counter[str] = Counter()
    embeddings: Counter[str] = Counter()
    data: Counter[str] = Counter()
    for index, (tensor, own) in enumerate(zip(attribution.tensors, attribution.own, strict=True)):
        if tensor.role not in ("weight", "buffer"):
            data[_TRAINING.get(tensor.role, "other tensors")] += own
        elif index in evidence.scan.copies:
            data["copies of other tensors"] += own
        elif index in evidence.embeddings:
            embeddings["tables"] += own
        else:
            architecture["weights" if tensor.role == "weight" else "buffers"] += own
    serialization: Counter[str] = Counter()
    serialization["unused parts of storages"] = sum(attribution.slack.values())
    serialization["tokenizer files"] = sum(evidence.source.details.get("tokenizer", {}).values())
    serialization["other files in the folder"] = sum(
        evidence.source.details.get("other_files", {}).values()
    )
    rest = total - sum(map(Counter.total, (architecture, embeddings, data, serialization)))
    serialization["headers, padding, code"] = rest
    return tuple(
        Cause(name, parts.total(), tuple((k, v) for k, v in parts.most_common() if v))
        for name, parts in (
            ("architecture", architecture),
            ("embeddings", embeddings),
            ("data", data),
            ("serialization", serialization),
        )
    )


def _notes(source: Source, attribution: Attribution, seen: Scan) -> list[str]:
    notes = []
    names = {i: attribution.tensors[i].name for i in seen.facts}
    for found, which in (
        (
            "NaN in {}: no quantizer can help that",
            [names[i] for i, facts in seen.facts.items() if facts.nan],
        ),
        (
            "infinite values in {}: a mask's stay as they are; weights with them are broken",
            [names[i] for i, facts in seen.facts.items() if facts.not_finite > facts.nan],
        ),
    ):
        if which:
            more = f" and {len(which) - 1} more" if len(which) > 1 else ""
            notes.append(found.format(f"{which[0]}{more}"))
    key = source.details.get("checkpoint_key")
    if key:
        notes.append(f"the model is taken from the key {key!r} of the checkpoint")
    if source.details.get("quantized"):
        notes.append("quantized already: give edgeopt quantize the float original")
    sparse = sparsity(source.weights)
    if sparse is not None:
        notes.append(
            f"stored sparse: {sparse.tensors} tensor{'s' if sparse.tensors > 1 else ''}, "
            f"{format_bytes(sparse.nbytes)} of masks and values in place of "
            f"{format_bytes(sparse.dense)}; {sparse.share:.1%} of their {sparse.elements:,} "
            "values are zeros, and are in memory once read"
        )
    if source.needs_trust:
        notes.append(f"quantizing needs --trust-pickle: {source.needs_trust}")
    if not seen.whole:
        notes.append(
            f"of {seen.total:,} bytes of weights {seen.read:,} were read; --deep reads them all"
        )
    return notes
