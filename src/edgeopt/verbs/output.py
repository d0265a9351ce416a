"""Where an artifact goes: its default name, the files beside it, and keeping it only if proven."""

from __future__ import annotations

import dataclasses
import errno
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeopt.core import Plan, Proof, Source
from edgeopt.errors import OutputError
from edgeopt.files.atomic import checked_output, writing_group

__all__ = ["artifact_path", "metadata_of", "plan_path", "scratch", "write_proven"]


#: What can go wrong with a temporary file that is not the program's fault.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES})


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what is made on the way; OutputError where the disk under it has no room."""
    try:
        with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OutputError(
            f"{tempfile.gettempdir()}: {error.strerror}; temporary files need about three times the"
            " model's size, set TMPDIR to a folder that has it"
        ) from error


class _NotProven(Exception):
    """Leaves the writing block, so that the temporary files are removed."""


def artifact_path(source: Source, out: str | Path | None, tag: str, suffix: str) -> Path:
    """``out``, or a name beside the source: ``model.pt`` -> ``model-int8.onnx``.

    Raises OutputError where it cannot be written, before any work is done.
    """
    if out is None:
        path = source.path.absolute()
        stem = path.name if path.is_dir() else path.name.removesuffix(path.suffix)
        out = path.parent / f"{stem}-{tag}{suffix}"
    return checked_output(out, [source.path, *source.files])


def plan_path(artifact: Path) -> Path:
    """The plan's file beside an artifact: ``model-int8.onnx`` -> ``model-int8.plan.json``."""
    return artifact.with_name(f"{artifact.name.removesuffix(artifact.suffix)}.plan.json")


def metadata_of(
    source_sha256: str, plan: Plan | None, options: Mapping[str, Any]
) -> dict[str, str]:
    """What an artifact says of its origin; no dates, no paths: same plan, same bytes."""
    from importlib.metadata import version

    import edgeopt

    body = {
        "edgeopt": edgeopt.__version__,
        "source_sha256": source_sha256,
        "plan_sha256": plan.digest() if plan is not None else None,
        "options": dict(options),
        "versions": {name: version(name) for name in ("numpy", "onnx", "onnx-ir", "onnxruntime")},
    }
    return {"edgeopt": json.dumps(body, sort_keys=True)}


def write_proven(
    out: Path,
    plan: Plan | None,
    force: bool,
    make: Callable[[Path], Proof],
) -> Proof:
    """Write the artifact (and its plan beside it) under temporary names, prove it, and keep it.

    ``make`` writes the file it is given and returns the proof of it. An artifact that fails is
    kept under the asked name only with ``force``; an existing file there stays otherwise.
    """
    targets = [out] if plan is None else [plan_path(out), out]
    proof: Proof | None = None
    try:
        with writing_group(targets) as temporary:
            proof = make(temporary[-1])
            if plan is not None:
                text = json.dumps(plan.to_json(), indent=1)
                temporary[0].write_text(text + "\n", encoding="utf-8")
                artifact = {**proof.artifact, "plan": str(targets[0])}
                proof = dataclasses.replace(proof, artifact=artifact)
            if not proof.proven and not force:
                raise _NotProven
    except _NotProven:
        assert proof is not None
    return proof
