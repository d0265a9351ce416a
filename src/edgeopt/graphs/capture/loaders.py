"""From a source to a torch model in memory, one function a kind of source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgeopt.core import Array, InputSpec, Source
from edgeopt.errors import SourceError
from edgeopt.graphs.capture.axes import Inputs
from edgeopt.graphs.capture.loaded import Loaded
from edgeopt.graphs.capture.plain import derive
from edgeopt.graphs.capture.program import load_program
from edgeopt.modules.loading import (
    argument_names,
    build,
    fill,
    needs_trust,
    scripted,
    unpickled,
)
from edgeopt.modules.outputs import Flat

__all__ = ["CaptureJob", "load"]


@dataclass(frozen=True)
class CaptureJob:
    """What the parent asks for."""

    path: Path
    kind: str
    workdir: Path
    model: str | None
    trust: bool
    inputs: tuple[InputSpec, ...]
    example: Mapping[str, Array] | None
    opset: int
    bare: bool = False


def load(job: CaptureJob, source: Callable[[], Source]) -> Loaded:
    """Load by kind. ``source`` opens the file by our own reader, for its weights alone.

    Raises UnsafeError where loading would run code that nobody has allowed, SourceError,
    InputsError or CaptureError.
    """
    if job.model is not None:
        module = build(job.model)
        filled = fill(module, source().weights)
        return _plain(filled.module, job, filled.notes)
    if job.kind == "hf-folder":
        from edgeopt.graphs.capture.huggingface import load_folder

        return load_folder(job.path, job.trust, job.inputs, job.example)
    if job.kind == "torchscript":
        return _scripted(job)
    if job.kind == "torch-exported":
        return load_program(job.path, job.trust)
    if job.kind == "torch-module":
        needs_trust(job.path, job.kind, job.trust)
        return _plain(unpickled(job.path), job)
    raise SourceError(f"{job.path}: a state dict has no code: give --model package.module:callable")


# ---------------------------------------------------------------------------------------------
# modules and TorchScript


def _plain(module: nn.Module, job: CaptureJob, said: Sequence[str] = ()) -> Loaded:
    notes = list(said)
    floats = {p.dtype for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()}
    if floats - {torch.float32}:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in floats))
        notes.append(f"weights of {names} are captured as float32")
    module = module.float().eval()

    def works(inputs: Inputs, feed: Mapping[str, Array]) -> str | None:
        return Loaded(call=_flat(module, inputs), inputs=inputs).complaint(feed)

    inputs, found = derive(module, job.inputs, job.example, works, bare=job.bare)
    flat = _flat(module, inputs)
    return Loaded(
        call=flat,
        inputs=inputs,
        module=flat,
        recurrent=any(isinstance(m, nn.RNNBase) for m in module.modules()),
        attention=tuple(m for m in module.modules() if hasattr(m, "set_attn_implementation")),
        notes=[*notes, *found],
    )


def _flat(module: nn.Module, inputs: Inputs) -> Flat:
    names = tuple(s.name for s in inputs.specs)
    required, optional = argument_names(module)
    flat = Flat(module, names, positional=not set(names) <= {*required, *optional})
    flat.eval()
    return flat


def _scripted(job: CaptureJob) -> Loaded:
    module = scripted(job.path)

    def works(inputs: Inputs, feed: Mapping[str, Array]) -> str | None:
        return Loaded(call=module, inputs=inputs).complaint(feed)

    inputs, found = derive(module, job.inputs, job.example, works, bare=job.bare)
    return Loaded(call=module, inputs=inputs, module=module, scripted=True, notes=list(found))
