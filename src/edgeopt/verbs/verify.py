"""``edgeopt verify``: prove any artifact against the model it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from edgeopt.core import Proof
from edgeopt.core.calls import stated
from edgeopt.errors import ProofFailed, SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.options.table import Verify, flag_of
from edgeopt.targets.base import prove_artifact, requested
from edgeopt.targets.written import Integrity, as_written, check_file
from edgeopt.verbs.calling import asking

__all__ = ["verify"]


@overload
def verify(source: str | Path) -> Integrity: ...
@overload
def verify(source: str | Path, artifact: str | Path, **options: Any) -> Proof: ...
@asking(Verify)  # type: ignore[misc]  # the options are those of Verify, by name
def verify(source: str | Path, options: Verify) -> Proof | Integrity:
    """Prove ``artifact`` against ``source``; nothing is written and neither file is touched.

    ``verify(artifact)`` alone tells whether it is still the file that was written, by the digests
    that were written with it (see docs/formats.md).

    ``artifact`` is an ONNX file, of edgeopt or of anybody, a safetensors file of packed weights,
    or GGUF. An artifact that carries edgeopt's metadata is held to the floor of its own bits and
    to what it was made to be good at; a stranger's to the floor of the bits that its operators
    show. A GGUF file is held against its Hugging Face folder or another GGUF of the same model,
    and with ``text`` next-token distributions are compared.

    Digests are held against the artifact here too: a file that was changed since edgeopt wrote it
    is not proven, however alike its answers are.

    Args:
        source: what it was made from; or the artifact, where that is all that is given.
        {options}

    Returns:
        The proof; of an artifact alone an :class:`edgeopt.Integrity`.

    Raises:
        EdgeoptError: a source or an artifact that cannot be used (see :mod:`edgeopt.errors`).
    """
    artifact = options.artifact
    if artifact is None:
        return _alone(source)
    opened = open_source(source)
    with _damage_named(artifact):
        made = open_source(artifact)
    if opened.path.resolve() == made.path.resolve():
        raise UsageError(f"{made.path}: is the source itself; give the artifact made from it")
    with _damage_named(made.path):
        proof = prove_artifact(opened, made, requested("verify", options))
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
