"""The proof of packed weights: every tensor of the source against what the file gives back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import Basis, Check, Proof, Source, TensorFidelity, Verdict, Weight, format_bytes
from edgeopt.errors import SourceError
from edgeopt.files import packed
from edgeopt.files.open import open_source
from edgeopt.files.spans import row_spans
from edgeopt.files.weights import logical_weights
from edgeopt.measure.environment import environment
from edgeopt.measure.gate import FLOORS
from edgeopt.numerics.affine import noise_power, ratio_db
from edgeopt.targets.proof import proof_of
from edgeopt.targets.written import other_source

__all__ = ["prove_weights", "verify_weights"]

#: Tensors shown by name when weights are compared.
_WORST = 5


def verify_weights(
    source: Source,
    artifact: Source,
    sha256: str,
    min_sqnr: float | None,
    threads: int,
    shown: Path | None = None,
) -> Proof:
    """Every tensor of the source against what the artifact gives back in its place.

    ``shown`` is the name that the artifact will have, where that is not yet its own.
    """
    metadata = artifact.details["metadata"]
    if not packed.is_packed(metadata):
        raise SourceError(f"{artifact.path}: holds no packed weights; give what edgeopt wrote")
    header = packed.read_header(artifact.path, metadata)
    ratios = prove_weights(source, artifact.path)
    worst = sorted(ratios, key=lambda name: ratios[name])[:_WORST]
    bits = min((layout.scheme.bits for layout in header.layouts.values()), default=8)
    floor = FLOORS[4 if bits <= 4 else 8] if min_sqnr is None else min_sqnr
    lowest = ratios[worst[0]] if worst else math.inf
    coverage = _coverage(source, header)
    checks = (
        Check(
            "something quantized",
            bool(header.layouts),
            f"{coverage['share']:.1%} of the float weights' bytes",
            "more than none",
            "make it anew with edgeopt quantize",
        ),
        Check(
            "file smaller",
            artifact.nbytes < source.nbytes,
            f"{format_bytes(artifact.nbytes)} from {format_bytes(source.nbytes)}",
            "fewer bytes than the source",
            "use --bits 4",
        ),
        Check(
            "fidelity",
            lowest >= floor,
            f"{lowest:.1f} dB ({worst[0]})" if worst else "no tensors",
            f"{floor:g} dB or more in every tensor",
            "use --bits 8, or check that the artifact was made from this source",
        ),
    )
    final = shown or artifact.path
    return proof_of(
        "verify",
        source,
        final,
        Verdict(
            checks,
            ("weights proven; speed not: give --model to get a runnable file",),
            Basis("weights", len(ratios)),
        ),
        form="safetensors",
        nbytes=artifact.nbytes,
        source_sha256=sha256,
        sha256=artifact.sha256(),
        coverage=coverage,
        tensors=(TensorFidelity(name, ratios[name], ratios[name] > -math.inf) for name in worst),
        environment=environment(threads=threads),
        usage=(
            "import edgeopt\n"
            f"weights = edgeopt.load_weights({str(final)!r})\n"
            "for name, array in weights.items():\n"
            "    print(name, array.dtype, array.shape)"
        ),
        notes=other_source(header.source_sha256, sha256),
    )


def _coverage(source: Source, header: packed.PackedHeader) -> dict[str, Any]:
    floats = [w for w in source.weights if w.is_float]
    total = sum(w.nbytes for w in floats)
    stored = header.layouts.keys() | header.tied.keys()
    kept = [w for w in floats if w.name not in stored]
    kept_bytes = sum(w.nbytes for w in kept)
    bits: dict[str, int] = {}
    for layout in header.layouts.values():
        width = str(layout.scheme.bits)
        bits[width] = bits.get(width, 0) + math.prod(layout.shape)
    if kept:
        bits["float"] = sum(w.size for w in kept)
    return {
        "share": 1.0 - kept_bytes / total if total else 0.0,
        "source_bytes": total,
        "kept_bytes": kept_bytes,
        "kept": [{"tensor": w.name, "nbytes": w.nbytes} for w in kept],
        "quantized_tensors": len(header.layouts),
        "bits": bits,
    }


def prove_weights(source: Source, out_path: Path) -> dict[str, float]:
    """SQNR in dB of every tensor of ``source`` as ``out_path`` gives it back, by name.

    Reads the written file through the same door as :func:`edgeopt.load_weights`. inf: the same
    values; -inf: missing, of another shape, or not finite where the source is.
    """
    written = {weight.name: weight for weight in logical_weights(open_source(out_path))}
    return {weight.name: _sqnr(weight, written.get(weight.name)) for weight in source.weights}


def _sqnr(weight: Weight, got: Weight | None) -> float:
    if got is None or got.shape != weight.shape:
        return -np.inf
    signal = noise = 0.0
    for lo, hi in row_spans(weight):
        powers = noise_power(weight.rows(lo, hi), got.rows(lo, hi))
        signal, noise = signal + powers[0], noise + powers[1]
    return ratio_db(signal, noise)
