"""Where an artifact goes: its default name, the files beside it, and keeping it only if proven."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeopt.core import Plan, Proof, Source
from edgeopt.core.given import home_of
from edgeopt.errors import OutputError, UsageError
from edgeopt.files import leftovers
from edgeopt.files.atomic import checked_output, writing_group
from edgeopt.files.seal import BLANK, SEAL
from edgeopt.targets.written import plan_path, record_of

__all__ = [
    "NotProven",
    "artifact_path",
    "default_path",
    "external_over",
    "metadata_of",
    "not_kept",
    "require_suffix",
    "scratch",
    "write_proven",
]


#: Formats by the ends of their files' names.
_FORMATS: Mapping[str, str] = {
    ".onnx": "ONNX",
    ".ort": "an ONNX Runtime file",
    ".safetensors": "safetensors",
    ".gguf": "GGUF",
    **dict.fromkeys((".pt", ".pt2", ".pth", ".ckpt", ".bin"), "a torch file"),
    **dict.fromkeys((".npz", ".npy"), "numpy arrays"),
    ".json": "JSON",
    ".tflite": "LiteRT",
    ".mlmodel": "Core ML",
    **dict.fromkeys((".h5", ".keras"), "Keras"),
}

#: What can go wrong with a temporary file that is not the program's fault.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES})


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what is made on the way; OutputError where the disk under it has no room."""
    try:
        leftovers.clear(Path(tempfile.gettempdir()), "edgeopt-")
        with tempfile.TemporaryDirectory(prefix=f"edgeopt-{leftovers.owned_name()}-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OutputError(
            f"{tempfile.gettempdir()}: {error.strerror}; temporary files need about three times the"
            " model's size, set TMPDIR to a folder that has it"
        ) from error


class NotProven(Exception):
    """Leaves the writing block, so that the temporary files are removed."""


def artifact_path(
    source: Source, out: str | Path | None, tag: str, suffix: str, *, instead: str = ""
) -> Path:
    """``out``, or a name beside the source: ``model.pt`` -> ``model-int8.onnx``.

    Raises, before any work is done, OutputError where it cannot be written, and UsageError where
    its suffix is another format's; ``instead`` says how to get that format.
    """
    asked = default_path(source, tag, suffix) if out is None else out
    require_suffix(asked, suffix, instead)
    return checked_output(asked, [source.path, *source.files])


def require_suffix(out: str | Path, suffix: str, instead: str = "") -> None:
    """UsageError where a name ends as files of another format than ``suffix``'s do."""
    found = Path(out).suffix.lower()
    written, named = (_FORMATS.get(end) for end in (suffix, found))
    if named is None or named == written:
        return
    more = f", or {instead}" if instead else ""
    raise UsageError(
        f"{out}: ends as {named} does, and what is written is {written}; name it"
        f" {Path(out).with_suffix(suffix).name}{more}"
    )


def default_path(source: Source, tag: str, suffix: str) -> Path:
    """The name that an artifact gets where nobody gives it one."""
    path = home_of(source.path).absolute()
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


def metadata_of(
    source_sha256: str, plan: Plan | None, options: Mapping[str, Any]
) -> dict[str, str]:
    """What an artifact says of its origin; no dates, no paths: same plan, same bytes.

    The place of its digest is blank: :func:`edgeopt.files.seal.seal` fills it in.
    """
    from importlib.metadata import version

    from edgeopt.version import VERSION

    body = {
        "edgeopt": VERSION,
        "source_sha256": source_sha256,
        "plan_sha256": plan.digest() if plan is not None else None,
        "options": dict(options),
        "versions": {name: version(name) for name in ("numpy", "onnx", "onnx-ir", "onnxruntime")},
    }
    return {"edgeopt": json.dumps(body, sort_keys=True), SEAL: BLANK}


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
                body = plan.to_json()
                document = {**body, "artifact": record_of(_digests(proof.artifact), body)}
                text = json.dumps(document, indent=1)
                temporary[-2].write_text(text + "\n", encoding="utf-8")
                artifact = {**proof.artifact, "plan": str(targets[-2])}
                proof = dataclasses.replace(proof, artifact=artifact)
            if proof.verdict.failed and not force:
                raise NotProven
    except NotProven:
        assert proof is not None
        return not_kept(proof)
    if plan is not None:
        _link_short_name(plan_path(out), out)
    return proof


def _digests(artifact: Mapping[str, Any]) -> dict[str, Any]:
    """What the proof says of the files it read, each by its name alone."""
    data = [
        {"name": Path(file["path"]).name, "sha256": file["sha256"]}
        for file in artifact.get("data", ())
    ]
    return {"sha256": artifact["sha256"], "data": data}


def _link_short_name(plan: Path, artifact: Path) -> None:
    """``model.plan.json``, as plans were called before, where nothing has that name yet."""
    short = artifact.with_name(f"{artifact.name.removesuffix(artifact.suffix)}.plan.json")
    with contextlib.suppress(OSError):  # taken, or a file system without links
        short.symlink_to(plan.name)


def not_kept(proof: Proof) -> Proof:
    """The proof without what needs the file: how to use it, and where its plan is."""
    artifact = {key: value for key, value in proof.artifact.items() if key != "plan"}
    return dataclasses.replace(proof, usage="", artifact={**artifact, "kept": False})
