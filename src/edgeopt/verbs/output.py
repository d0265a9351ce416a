"""Where an artifact goes: its default name, the files beside it, and keeping it only if proven."""

from __future__ import annotations

import dataclasses
import errno
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeopt.core import Plan, Proof, Source
from edgeopt.errors import OutputError, UsageError
from edgeopt.files.atomic import checked_output, writing_group

__all__ = [
    "artifact_path",
    "default_path",
    "external_over",
    "metadata_of",
    "plan_path",
    "scratch",
    "write_proven",
]


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
    asked = default_path(source, tag, suffix) if out is None else out
    return checked_output(asked, [source.path, *source.files])


def default_path(source: Source, tag: str, suffix: str) -> Path:
    """The name that an artifact gets where nobody gives it one."""
    path = source.path.absolute()
    stem = path.name if path.is_dir() else path.name.removesuffix(path.suffix)
    return path.parent / f"{stem}-{tag}{suffix}"


def external_over(asked: str | int) -> int | None:
    """Bytes of weights over which they go to a file beside the model; None: never.

    ``asked`` is ``auto``, ``always``, ``never`` or the bytes; UsageError for anything else.
    """
    from edgeopt.graphs.external import OVER

    known = {"auto": OVER, "always": 0, "never": None}
    if isinstance(asked, str) and asked in known:
        return known[asked]
    if isinstance(asked, int) and asked >= 0:
        return asked
    raise UsageError(f"--external-data {asked}: not one of {', '.join(known)}")


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
    *,
    data: Path | None = None,
    sources: Iterable[Path] = (),
) -> Proof:
    """Write the artifact (and its plan beside it) in a temporary place, prove it, and keep it.

    ``make`` writes the file it is given, and returns the proof of it; ``data`` is the file beside
    the artifact that it may write too, as a file of that name beside the one it was given. An
    artifact that fails is kept under the asked name only with ``force``; existing files stay
    otherwise. Raises OutputError where one of them would replace one of ``sources``.
    """
    beside = [] if data is None else [data]
    targets = [*beside, *([] if plan is None else [plan_path(out)]), out]
    proof: Proof | None = None
    try:
        with writing_group(targets, source_paths=sources, named=True) as temporary:
            for unused in temporary[: len(beside)]:
                unused.unlink()  # until it is written
            proof = make(temporary[-1])
            if plan is not None:
                text = json.dumps(plan.to_json(), indent=1)
                temporary[-2].write_text(text + "\n", encoding="utf-8")
                artifact = {**proof.artifact, "plan": str(targets[-2])}
                proof = dataclasses.replace(proof, artifact=artifact)
            if not proof.proven and not force:
                raise _NotProven
    except _NotProven:
        assert proof is not None
    return proof
