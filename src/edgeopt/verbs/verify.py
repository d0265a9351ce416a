"""``edgeopt verify``: prove any artifact against the model it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from edgeopt.core import Progress, Proof
from edgeopt.core.calls import stated
from edgeopt.core.takes import flag_of
from edgeopt.errors import ProofFailed, SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.targets.base import Request, prove_artifact
from edgeopt.targets.written import Integrity, as_written, check_file
from edgeopt.verbs.calling import verb

__all__ = ["verify"]


@overload
def verify(source: str | Path) -> Integrity: ...
@overload
def verify(source: str | Path, artifact: str | Path, **options: Any) -> Proof: ...
@verb()  # type: ignore[misc]  # the options are those below, by name
def verify(
    source: str | Path,
    artifact: str | Path | None = None,
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
) -> Proof | Integrity:
    """Prove ``artifact`` against ``source``; nothing is written and neither file is touched.

    ``verify(artifact)`` alone tells whether it is still the file that was written, by the digests
    that were written with it (see docs/formats.md).

    ``artifact`` is an ONNX file, of edgeopt or of anybody, a safetensors file of packed weights,
    or GGUF. An artifact that carries edgeopt's metadata is held to the floor of its own bits and
    to what it was made to be good at; a stranger's to the floor of the bits that its operators
    show. A GGUF file is held against its Hugging Face folder or another GGUF of the same model,
    and with ``text``, a file, next-token distributions are compared over ``chunks`` of ``context``
    tokens. The other arguments are those of :func:`edgeopt.quantize`.

    Digests are held against the artifact here too: a file that was changed since edgeopt wrote it
    is not proven, however alike its answers are.

    Returns:
        The proof; of an artifact alone an :class:`edgeopt.Integrity`.

    Raises:
        EdgeoptError: a source or an artifact that cannot be used (see :mod:`edgeopt.errors`).
    """
    if artifact is None:
        return _alone(source)
    opened = open_source(source)
    with _damage_named(artifact):
        made = open_source(artifact)
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
    with _damage_named(made.path):
        proof = prove_artifact(opened, made, request)
    verdict = proof.verdict
    checks = (*verdict.checks, *as_written(made.path))
    return dataclasses.replace(proof, verdict=dataclasses.replace(verdict, checks=checks))


@contextmanager
def _damage_named(artifact: str | Path) -> Iterator[None]:
    """ProofFailed in place of what a reader says of a file that its own digest shows damaged."""
    try:
        yield
    except SourceError as error:
        for check in as_written(Path(artifact)) if Path(artifact).exists() else ():
            if not check.passed:
                raise ProofFailed(
                    f"{artifact}: changed since it was written ({error}); {check.advice}"
                ) from error
        raise


def _alone(artifact: str | Path) -> Integrity:
    said = sorted((stated() or frozenset()) - {"source", "progress"})
    if said:
        raise UsageError(
            f"{', '.join(map(flag_of, said))}: for comparing with a source; give both: edgeopt"
            f" verify SOURCE {artifact}"
        )
    return check_file(artifact)
