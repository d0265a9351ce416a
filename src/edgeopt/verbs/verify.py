"""``edgeopt verify``: prove any artifact against the model it came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.core import Check, Progress, Proof, Source
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.targets.keep import scratch
from edgeopt.targets.onnx.source import has_graph, narrowed, prepare
from edgeopt.targets.packed.prove import verify_weights
from edgeopt.targets.written import as_written, other_source
from edgeopt.verbs.applies import require_meaning
from edgeopt.verbs.calling import verb

__all__ = ["verify"]

#: Operators and dtypes that only weights of 4 bits and less have.
_FOUR_BIT_OPS = frozenset({"MatMulNBits", "GatherBlockQuantized", "MatMulBnb4"})
_FOUR_BIT_DTYPES = frozenset({"int4", "uint4", "int2", "uint2", "float4_e2m1fn"})


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
    )
    changed = as_written(made.path)
    if made.kind == "gguf":
        from edgeopt.targets.gguf.verify import verify_gguf

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
    from edgeopt.targets.onnx.prove import prove_graph

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
            prefer=prefer,
            threads=threads,
            coverage=coverage if bits is not None else None,
            quantized=bits is not None,
            source_sha256=sha256,
            notes=other_source(origin.get("source_sha256"), sha256),
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
