"""The child process: reads a job, exports, writes a result. Progress goes out line by line.

Started by :mod:`edgeopt.graphs.capture.parent`; nothing here is imported there.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Array, InputSpec, Source
from edgeopt.errors import CaptureError, EdgeoptError, FormatError, MissingExtraError
from edgeopt.graphs.capture.feeds_file import read_feed, write_feed

if TYPE_CHECKING:
    from edgeopt.graphs.capture.loaded import Loaded

__all__ = ["answer", "main"]

Tell = Callable[[str], None]


def main(job_path: str) -> int:
    """Do the job described by a JSON file; the answer is written to ``result.json`` beside it."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # What torch prints goes to the captured standard error; the real standard output carries
    # progress alone.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    os.environ.setdefault("TORCH_LOGS", "-all")
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)

    def tell(step: str) -> None:
        print(json.dumps({"step": step}), file=channel)

    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    workdir = Path(job["workdir"])
    result = answer(job, workdir, tell)
    result["peak_bytes"] = _peak()
    (workdir / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def answer(job: Mapping[str, Any], workdir: Path, tell: Tell) -> dict[str, Any]:
    """What comes of a job: where the file lies and how it came about, or the error's name and
    message."""
    try:
        return _do(job, workdir, tell)
    except FormatError as error:
        # Its arguments are not its message: it is rebuilt as its parent class.
        return {"error": "SourceError", "message": str(error)}
    except MissingExtraError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except EdgeoptError as error:
        return {"error": type(error).__name__, "message": " ".join(str(error).split())}
    except MemoryError:
        return {"error": "CaptureError", "message": "the export ran out of memory"}


def _die_with_parent() -> None:
    """Standard input ends when the parent does, however it ends: no orphan goes on exporting."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _peak() -> int:
    """The process's own peak of resident memory, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
    line = next((ln for ln in status.splitlines() if ln.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


def _do(job: Mapping[str, Any], workdir: Path, tell: Tell) -> dict[str, Any]:
    inputs = tuple(InputSpec(n, d, tuple(s)) for n, d, s in job["inputs"])
    example = read_feed(Path(job["example"])) if "example" in job else None
    path = Path(job["path"])
    if job["kind"] == "onnx":
        from edgeopt.graphs.capture.onnx_file import GIVEN, take

        taken = take(path, workdir, job["opset"], inputs, example, tell)
        answer = _answer(taken.path, GIVEN, taken.opset, taken.sample, None, taken.notes, workdir)
        return {**answer, "batches": taken.batches}
    return _torch(job, path, inputs, example, workdir, tell)


def _torch(
    job: Mapping[str, Any],
    path: Path,
    inputs: tuple[InputSpec, ...],
    example: Mapping[str, Array] | None,
    workdir: Path,
    tell: Tell,
) -> dict[str, Any]:
    tell("importing torch")
    for package in ("torch", "onnxscript"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError(package, "torch", "turning a torch model into ONNX") from None
    import torch

    from edgeopt.graphs.capture.ladder import climb
    from edgeopt.graphs.capture.loaders import CaptureJob, load
    from edgeopt.modules.export_choices import quiet_choices

    logging.disable(logging.CRITICAL)
    quiet_choices()
    torch.manual_seed(0)
    order = CaptureJob(
        path=path,
        kind=job["kind"],
        workdir=workdir,
        model=job["model"],
        trust=job["trust_pickle"],
        inputs=inputs,
        example=example,
        opset=job["opset"],
        bare=job.get("bare", False),
    )

    def source() -> Source:
        from edgeopt.files.open import open_source

        return open_source(path)

    tell("loading the model")
    loaded = load(order, source)
    _settle(loaded)
    held, notes = climb(loaded, workdir, job["opset"], tell)
    return _answer(
        held.path,
        held.rung,
        held.opset,
        held.example,
        held.agreement_db,
        (*loaded.notes, *notes),
        workdir,
    )


def _settle(loaded: Loaded) -> None:
    """Run the model once, learn its outputs' names, and pin what it does not let vary."""
    from edgeopt.graphs.capture.axes import feed, settle
    from edgeopt.graphs.capture.loaded import tensors
    from edgeopt.graphs.capture.repeat import require_repeatable
    from edgeopt.modules.outputs import Flat, flatten

    first = feed(loaded.inputs)
    complaint = loaded.complaint(first)
    if complaint is not None:
        raise CaptureError(f"the model does not run on its inputs: {complaint}")
    if isinstance(loaded.call, Flat):
        loaded.output_names = loaded.call.names_out(*tensors(loaded.inputs, first))
    else:
        names = tuple(n for n, _ in flatten(loaded.call(*tensors(loaded.inputs, first))))
        loaded.output_names = names
    if not loaded.output_names:
        raise CaptureError("the model's forward() returns no tensor")
    require_repeatable(loaded.run, first)
    loaded.inputs, notes = settle(loaded.inputs, loaded.complaint)
    loaded.notes.extend(notes)
    loaded.output_axes = _output_axes(loaded)


def _output_axes(loaded: Loaded) -> tuple[tuple[str | None, ...], ...]:
    """Which free dimension each dimension of each output equals, by its sizes in two runs."""
    from edgeopt.graphs.capture.axes import feed

    runs = [loaded.run(feed(loaded.inputs, second)) for second in (False, True)]
    sizes: dict[tuple[int, int], str] = {}
    for name, axis in loaded.inputs.axes.items():
        sizes.setdefault((axis.first, axis.second), name)
    return tuple(
        tuple(sizes.get(pair) for pair in zip(first.shape, second.shape, strict=True))
        for first, second in zip(*runs, strict=True)
    )


def _answer(
    model: Path,
    rung: str,
    opset: int,
    example: Mapping[str, Array],
    agreement: float | None,
    notes: tuple[str, ...],
    workdir: Path,
) -> dict[str, Any]:
    from edgeopt.data.sizes import batch_symbols
    from edgeopt.graphs.capture.check import file_io

    taken, given = file_io(model)
    names = {s.name for s in taken}
    write_feed(workdir / "example.npz", {k: v for k, v in example.items() if k in names})
    return {
        "model": str(model),
        "rung": rung,
        "opset": opset,
        "inputs": [[s.name, s.dtype, list(s.shape)] for s in taken],
        "outputs": [[s.name, s.dtype, list(s.shape)] for s in given],
        "example": str(workdir / "example.npz"),
        "agreement_db": None if agreement is None else str(agreement),
        "notes": list(notes),
        # A batch that is free after an export was tried at two sizes on the way.
        "batches": bool(batch_symbols(taken)),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
