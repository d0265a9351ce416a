"""The parent's side: write the job, start the child, pass its progress on, read its answer."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import errors
from edgeopt.core import Array, InputSpec, Progress, Source
from edgeopt.core.given import is_given
from edgeopt.errors import EdgeoptError, UnsafeError, WorkerError
from edgeopt.graphs.capture.feeds_file import read_feed, write_feed

__all__ = ["Captured", "capture"]

#: The child gets the parent's own module path: neither the current folder nor the script's comes
#: first, so that no file lying about is taken for a package.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from edgeopt.graphs.capture.child import main; sys.exit(main(sys.argv[1]))"
)


@dataclass(frozen=True)
class Captured:
    """A float ONNX file and how it came about.

    ``rung`` is ``onnx as given``, ``dynamo, eager attention``, ``dynamo`` or ``torchscript
    exporter``. ``inputs`` and ``outputs`` are as ONNX Runtime reports them, free dimensions by
    name. ``example`` is a feed that the file was checked on, at the sizes asked for,
    else a batch of one. ``agreement_db`` is the signal to
    noise ratio of ONNX Runtime on the file against the torch module on another feed, of another
    size where dimensions are free; None for ONNX sources. ``notes`` say which rungs fell and why,
    and which dimensions could not be had free. ``peak_bytes`` is the child's peak of memory.
    ``batches``: the file was seen to run on several samples in a batch.
    """

    model: Path
    rung: str
    opset: int
    inputs: tuple[InputSpec, ...]
    outputs: tuple[InputSpec, ...]
    example: Mapping[str, Array]
    agreement_db: float | None
    notes: tuple[str, ...]
    peak_bytes: int = 0
    batches: bool = False


def capture(
    source: Source,
    workdir: Path,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    inputs: Sequence[InputSpec] = (),
    example: Mapping[str, Array] | None = None,
    bare: bool = False,
    opset: int = 21,
    half: bool = False,
    progress: Progress | None = None,
) -> Captured:
    """Turn a source that has a graph into a float ONNX file in ``workdir``.

    ``model`` is ``package.module:callable``, code for a state dict (or in place of a pickled
    module's own). ``inputs`` gives shapes, a name in place of a size meaning free; ``example`` one
    feed of the model, which shapes and values are taken from, by name or by position (``#0``), one
    sample without an axis for a batch where it is ``bare``. An ONNX source whose opset suffices
    is used where it lies, and never written to. ``half`` is left to those who have the graph: the
    file is float32 either way.

    Raises UnsafeError where loading would run code that nobody allowed, InputsError, CaptureError,
    SourceError, UsageError, MissingExtraError, and WorkerError if the child died.
    """
    del half
    runs_code = source.kind == "torch-module" or (
        source.kind == "torch-exported" and source.needs_trust is not None
    )
    if runs_code and not trust_pickle and model is None:
        raise UnsafeError(_untrusted(source))
    workdir = workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    room = workdir / "capture"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    job: dict[str, Any] = {
        "path": str(source.path.resolve()),
        "kind": source.kind,
        "workdir": str(room),
        "model": model,
        "trust_pickle": trust_pickle,
        "inputs": [[s.name, s.dtype, list(s.shape)] for s in inputs],
        "opset": opset,
        "bare": bare,
    }
    if example is not None:
        write_feed(room / "given.npz", example)
        job["example"] = str(room / "given.npz")
    path = room / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    answer = _here(job, room, progress) if is_given(model) else _run(path, room, progress)
    if "error" in answer:
        raise _rebuilt(answer["error"], answer["message"])
    return _captured(answer)


def _untrusted(source: Source) -> str:
    why = source.needs_trust or "loading it runs code that it carries"
    remedy = "give --trust-pickle if you trust it"
    if source.kind == "torch-module":
        remedy += ", or the code with --model package.module:callable"
    return f"{source.path}: {why}; {remedy}"


def _here(job: Mapping[str, Any], room: Path, progress: Progress | None) -> dict[str, Any]:
    """The job done in this process, which alone has the model's code: torch's generators, its
    choices and what it prints are as before afterwards."""
    import torch

    from edgeopt.graphs.capture import child
    from edgeopt.modules.export_choices import quiet

    def tell(step: str) -> None:
        if progress is not None:
            progress(step, None)

    disabled = logging.root.manager.disable
    said = io.StringIO()
    with (
        torch.random.fork_rng(devices=[]),
        quiet(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            return {"peak_bytes": 0, **child.answer(job, room, tell)}
        finally:
            logging.disable(disabled)


def _run(job: Path, room: Path, progress: Progress | None) -> dict[str, Any]:
    errors_path = room / "stderr.txt"
    with errors_path.open("wb") as errors_file:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors_file,
            start_new_session=True,
        )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            _pass_on(line, progress)
        code = child.wait()
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.stdout.close()
        if child.stdin is not None:
            child.stdin.close()
    result = room / "result.json"
    if code == 0 and result.is_file():
        answer: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return answer
    raise WorkerError(_obituary(code, errors_path))


def _pass_on(line: bytes, progress: Progress | None) -> None:
    try:
        message = json.loads(line)
    except ValueError:
        return  # something else wrote to the channel
    if progress is not None and isinstance(message, dict):
        progress(str(message.get("step", "")), None)


def _obituary(code: int, errors_path: Path) -> str:
    last = [
        ln.strip()
        for ln in errors_path.read_text(encoding="utf-8", errors="replace").splitlines()
        if ln.strip()
    ]
    said = f": {last[-1][:300]}" if last else ""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the export process was killed by {name}{hint}{said}"
    return f"the export process ended with status {code} and no answer{said}"


def _rebuilt(name: str, message: str) -> EdgeoptError:
    """The same class of error as in the child."""
    cls = getattr(errors, name, EdgeoptError)
    if not (isinstance(cls, type) and issubclass(cls, EdgeoptError)):
        cls = EdgeoptError
    error = cls.__new__(cls)
    error.args = (message,)
    return error


def _captured(answer: Mapping[str, Any]) -> Captured:
    def specs(rows: Sequence[Sequence[Any]]) -> tuple[InputSpec, ...]:
        return tuple(InputSpec(n, d, tuple(s)) for n, d, s in rows)

    agreement = answer["agreement_db"]
    return Captured(
        model=Path(answer["model"]),
        rung=answer["rung"],
        opset=int(answer["opset"]),
        inputs=specs(answer["inputs"]),
        outputs=specs(answer["outputs"]),
        example=read_feed(Path(answer["example"])),
        agreement_db=None if agreement is None else float(agreement),
        notes=tuple(answer["notes"]),
        peak_bytes=int(answer["peak_bytes"]),
        batches=bool(answer["batches"]),
    )
