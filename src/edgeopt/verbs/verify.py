"""``edgeopt verify``: prove any artifact against the model it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgeopt.core import Progress, Proof
from edgeopt.errors import UsageError
from edgeopt.files.open import open_source
from edgeopt.targets.base import Request, prove_artifact
from edgeopt.targets.written import as_written
from edgeopt.verbs.calling import verb

__all__ = ["verify"]


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
    request = Request(
        verb="verify",
        data=data,
        inputs=inputs,
        model=model,
        trust_pickle=trust_pickle,
        min_sqnr=min_sqnr,
        min_same=min_same,
        prefer=prefer,
        threads=threads,
        text=text,
        chunks=chunks,
        context=context,
        progress=progress,
    )
    proof = prove_artifact(opened, made, request)
    verdict = proof.verdict
    checks = (*verdict.checks, *as_written(made.path))
    return dataclasses.replace(proof, verdict=dataclasses.replace(verdict, checks=checks))
