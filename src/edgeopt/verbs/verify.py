"""``edgeopt verify``: prove any artifact against the model it came from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.core import Basis, Check, Fidelity, Progress, Proof, Source, Verdict, format_bytes
from edgeopt.errors import SourceError, UsageError
from edgeopt.files import packed
from edgeopt.files.open import open_source
from edgeopt.verbs.applies import require_meaning
from edgeopt.verbs.calling import verb
from edgeopt.verbs.graph_source import has_graph, narrowed, prepare
from edgeopt.verbs.output import scratch
from edgeopt.verbs.written import as_written

__all__ = ["verify", "verify_weights"]

#: Operators and dtypes that only weights of 4 bits and less have.
_FOUR_BIT_OPS = frozenset({"MatMulNBits", "GatherBlockQuantized", "MatMulBnb4"})
_FOUR_BIT_DTYPES = frozenset({"int4", "uint4", "int2", "uint2", "float4_e2m1fn"})

#: Tensors shown by name when weights are compared.
_WORST = 5


@verb()
def verify(
    source: str | Path,
    artifact: str | Path,
    *,
    data: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    min_sqnr: float | None = None,
    min_same: float | None = None,
    prefer: str = "balanced",
    threads: int = 1,
    text: str | Path | None = None,
    chunks: int = 8,
    context: int = 512,
    progress: Progress | None = None,
) -> Proof:
    """Prove ``artifact`` against ``source``; nothing is written and neither file is touched.

    ``artifact`` is an ONNX file, of edgeopt or of anybody, a safetensors file of packed weights,
    or GGUF. An artifact that carries edgeopt's metadata is held to the floor of its own bits and
    to what it was made to be good at; a stranger's to the floor of the bits that its operators
    show. A GGUF file is held against its Hugging Face folder or another GGUF of the same model,
    and with ``text``, a file, next-token distributions are compared over ``chunks`` of ``context``
    tokens. The other arguments are those of :func:`edgeopt.quantize`.

    Where the artifact's plan lies beside it, the artifact's SHA-256 is held against what the plan
    says was written: a file that was changed since is not proven, however alike its answers are.

    Raises:
        EdgeoptError: a source or an artifact that cannot be used (see :mod:`edgeopt.errors`).
    """
    opened, made = open_source(source), open_source(artifact)
    if opened.path.resolve() == made.path.resolve():
        raise UsageError(f"{made.path}: is the source itself; give the artifact made from it")
    form = {"gguf": "GGUF", "safetensors": "safetensors"}.get(made.kind, "ONNX")
    require_meaning(
        form,
        data=data,
        inputs=inputs,
        model=None if has_graph(opened, None) else model,
        prefer=prefer,
        threads=threads,
        text=text,
        chunks=chunks,
        context=context,
        min_same=min_same,
    )
    changed = as_written(made.path)
    if made.kind == "gguf":
        from edgeopt.verbs.verify_gguf import verify_gguf

        proof = verify_gguf(
            opened,
            made,
            text=None if text is None else Path(text),
            chunks=chunks,
            context=context,
            min_sqnr=min_sqnr,
            progress=progress,
        )
        return _with(proof, changed)
    if progress is not None:
        progress("reading", None)
    sha256 = opened.sha256()
    if made.kind == "safetensors":
        return _with(verify_weights(opened, made, sha256, min_sqnr, threads), changed)
    if made.kind != "onnx":
        raise SourceError(
            f"{made.path}: is {made.kind}; verify takes an ONNX file, packed safetensors or GGUF"
        )
    if not has_graph(opened, model):
        raise UsageError(
            f"{opened.path}: weights without code cannot be run against {made.path.name}; "
            "give the code with --model package.module:callable"
        )
    from edgeopt.graphs.coverage import float_bytes, read_coverage, read_half
    from edgeopt.verbs.proving import prove_graph

    origin = _origin(made.details["metadata"])
    options = _mapping(origin.get("options"))
    bits = options["bits"] if options.get("bits") in (4, 8) else _bits_shown(made)
    if bits is None and options.get("half") is True:
        bits = 16
    if prefer == "balanced" and options.get("prefer") in ("speed", "size", "memory"):
        prefer = options["prefer"]
    with scratch() as folder:
        prepared = prepare(
            opened,
            folder,
            data=data,
            inputs=inputs,
            model=model,
            trust_pickle=trust_pickle,
            progress=progress,
        )
        prepared = narrowed(prepared, made.inputs, data)
        read = read_half if bits == 16 else read_coverage
        coverage = read(made.path, float_bytes(prepared.captured.model))
        proof = prove_graph(
            "verify",
            prepared,
            made.path,
            made.path,
            bits=bits,
            min_sqnr=min_sqnr,
            min_same=min_same,
            prefer=prefer,
            threads=threads,
            coverage=coverage if bits is not None else None,
            quantized=bits is not None,
            source_sha256=sha256,
            notes=_other_source(origin.get("source_sha256"), sha256),
            progress=progress,
        )
    return _with(proof, changed)


def _with(proof: Proof, checks: tuple[Check, ...]) -> Proof:
    verdict = dataclasses.replace(proof.verdict, checks=(*proof.verdict.checks, *checks))
    return dataclasses.replace(proof, verdict=verdict)


def _origin(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What edgeopt wrote into the artifact about its making; empty for a stranger's file."""
    try:
        found = json.loads(metadata.get("edgeopt", "{}"))
    except (ValueError, RecursionError):
        return {}
    return _mapping(found)


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _bits_shown(artifact: Source) -> int | None:
    """Bits of the weights, as operators and dtypes show them; None where nothing is quantized."""
    ops = artifact.details["quantized_ops"]
    if _FOUR_BIT_OPS & set(ops) or any(w.dtype in _FOUR_BIT_DTYPES for w in artifact.weights):
        return 4
    return 8 if ops else None


def _other_source(claimed: object, sha256: str) -> tuple[str, ...]:
    if not isinstance(claimed, str) or not claimed or claimed == sha256:
        return ()
    return (
        f"the artifact says it was made from another file (SHA-256 {claimed[:12]}..., "
        f"this source has {sha256[:12]}...)",
    )


# ---------------------------------------------------------------------------------------------
# weights without a graph


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
    from edgeopt.measure.environment import environment
    from edgeopt.measure.gate import FLOORS
    from edgeopt.verbs.quantize_weights import prove_weights

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
    return Proof(
        verb="verify",
        source={
            "path": str(source.path),
            "kind": source.kind,
            "nbytes": source.nbytes,
            "sha256": sha256,
        },
        artifact={
            "path": str(shown or artifact.path),
            "format": "safetensors",
            "nbytes": artifact.nbytes,
            "sha256": artifact.sha256(),
        },
        plan=None,
        changes=(),
        coverage=coverage,
        fidelity=tuple(_of_weight(name, ratios[name]) for name in worst),
        samples="the weights themselves, the worst first",
        measurements=(),
        environment=environment(threads=threads),
        verdict=Verdict(
            checks,
            ("weights proven; speed not: give --model to get a runnable file",),
            Basis("weights", len(ratios)),
        ),
        usage=(
            "import edgeopt\n"
            f"weights = edgeopt.load_weights({str(shown or artifact.path)!r})\n"
            "for name, array in weights.items():\n"
            "    print(name, array.dtype, array.shape)"
        ),
        notes=_other_source(header.source_sha256, sha256),
    )


def _coverage(source: Source, header: packed.Header) -> dict[str, Any]:
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


def _of_weight(name: str, ratio: float) -> Fidelity:
    """A weight's own signal to noise, in the form of an output's; nothing else is known of it."""
    return Fidelity(
        output=name,
        sqnr_db=ratio,
        cosine=math.nan,
        max_abs=math.nan,
        top1=None,
        kl=None,
        finite=ratio > -math.inf,
        constant=False,
        samples=1,
    )
