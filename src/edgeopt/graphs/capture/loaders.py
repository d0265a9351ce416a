"""From a source to a torch model in memory, one function a kind of source."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeopt.core import Array, InputSpec, Source, Weight
from edgeopt.errors import CaptureError, SourceError, UnsafeError, UsageError
from edgeopt.graphs.capture.axes import Inputs
from edgeopt.graphs.capture.loaded import Loaded
from edgeopt.graphs.capture.outputs import Flat
from edgeopt.graphs.capture.plain import argument_names, derive
from edgeopt.graphs.capture.program import load_program
from edgeopt.graphs.capture.reasons import attempt, one_line

__all__ = ["Job", "build", "fill", "load"]


@dataclass(frozen=True)
class Job:
    """What the parent asks for."""

    path: Path
    kind: str
    workdir: Path
    model: str | None
    trust: bool
    inputs: tuple[InputSpec, ...]
    example: Mapping[str, Array] | None
    opset: int


def load(job: Job, source: Callable[[], Source]) -> Loaded:
    """Load by kind. ``source`` opens the file by our own reader, for its weights alone.

    Raises UnsafeError where loading would run code that nobody has allowed, SourceError,
    InputsError or CaptureError.
    """
    if job.model is not None:
        module = build(job.model)
        return _plain(fill(module, source().weights), job)
    if job.kind == "hf-folder":
        from edgeopt.graphs.capture.huggingface import load_folder

        return load_folder(job.path, job.trust, job.inputs, job.example)
    if job.kind == "torchscript":
        return _scripted(job)
    if job.kind == "torch-exported":
        _needs_trust(job, "torch.export.load unpickles what the file carries")
        return load_program(job.path)
    if job.kind == "torch-module":
        _needs_trust(job, "a pickled module runs code when it is loaded")
        return _plain(_unpickle(job.path), job)
    raise SourceError(f"{job.path}: a state dict has no code: give --model package.module:callable")


def _needs_trust(job: Job, why: str) -> None:
    if not job.trust:
        raise UnsafeError(
            f"{job.path}: {why}; give --trust-pickle if you trust it, or the code with "
            f"--model package.module:callable"
            if job.kind == "torch-module"
            else f"{job.path}: {why}; give --trust-pickle if you trust it"
        )


# ---------------------------------------------------------------------------------------------
# code and weights


def build(name: str) -> nn.Module:
    """Call ``package.module:callable`` (or take the module it names). The current folder counts."""
    package, _, attribute = name.partition(":")
    if not package or not attribute:
        raise UsageError(f"--model {name} is not of the form package.module:callable")
    _here()
    imported, error = attempt(lambda: importlib.import_module(package))
    if error is not None:
        raise SourceError(f"--model {name}: cannot import {package}: {one_line(error)}")
    found: Any = imported
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_")]
            near = ", ".join(names[:6]) or "nothing public"
            raise SourceError(f"--model {name}: {package} has no {part}; it has {near}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise SourceError(f"--model {name} is a {type(found).__name__}, not something to call")
    model, error = attempt(found)
    if error is not None:
        raise SourceError(f"--model {name}: calling it raised {one_line(error)}")
    if not isinstance(model, nn.Module):
        raise SourceError(f"--model {name} returned a {type(model).__name__}, not a torch Module")
    return model


def _here() -> None:
    """The user's own code counts from the current folder, once all of ours has been imported."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def fill(module: nn.Module, weights: tuple[Weight, ...]) -> nn.Module:
    """Load the weights into the module, strictly.

    A ``module.`` that DataParallel put before every name is taken off; a parameter that is tied to
    one that was loaded counts as loaded. Raises SourceError naming the first keys that do not fit.
    """
    own = module.state_dict(keep_vars=True)
    given = {w.name: w for w in weights}
    if given and not set(given) & set(own):
        stripped = {n.removeprefix("module."): w for n, w in given.items()}
        if set(stripped) & set(own):
            given = stripped
    unexpected = [n for n in given if n not in own]
    loaded = {id(own[n]) for n in given if n in own}
    missing = [n for n, t in own.items() if n not in given and id(t) not in loaded]
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    wrong = [
        f"{n} is {list(given[n].shape)} in the file and {list(own[n].shape)} in the code"
        for n in given
        if n in own and tuple(given[n].shape) != tuple(own[n].shape)
    ]
    problems = [
        *(f"{_first(missing)} missing from the file" for _ in [0] if missing),
        *(f"{_first(unexpected)} not in the code" for _ in [0] if unexpected),
        *wrong[:1],
    ]
    if problems:
        raise SourceError(f"the weights do not fit {type(module).__name__}: {'; '.join(problems)}")
    with torch.no_grad():
        for name, weight in given.items():
            own[name].copy_(_tensor(weight))
    return module


def _first(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def _tensor(weight: Weight) -> torch.Tensor:
    array = np.array(weight.array(), order="C")
    if weight.dtype == "bfloat16" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if weight.dtype.startswith("float8") and array.dtype.kind not in "iuf":
        array = array.astype(np.float32)
    return torch.from_numpy(array)


def _unpickle(path: Path) -> nn.Module:
    """The user has given their word: the file's own code runs here."""
    _here()
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ModuleNotFoundError, ImportError) as error:
        raise SourceError(
            f"{path}: the pickled module's class cannot be found: {one_line(error)}; run where its "
            f"code is importable, or give --model package.module:callable"
        ) from None
    if not isinstance(model, nn.Module):
        raise SourceError(f"{path} holds a {type(model).__name__}, not a torch Module")
    return model


# ---------------------------------------------------------------------------------------------
# modules and TorchScript


def _plain(module: nn.Module, job: Job) -> Loaded:
    notes: list[str] = []
    floats = {p.dtype for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()}
    if floats - {torch.float32}:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in floats))
        notes.append(f"weights of {names} are captured as float32")
    module = module.float().eval()

    def works(inputs: Inputs, feed: Mapping[str, Array]) -> str | None:
        return Loaded(call=_flat(module, inputs), inputs=inputs).complaint(feed)

    inputs, found = derive(module, job.inputs, job.example, works)
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


def _scripted(job: Job) -> Loaded:
    try:
        module = torch.jit.load(str(job.path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise CaptureError(f"{job.path}: torch cannot load it: {one_line(error)}") from None

    def works(inputs: Inputs, feed: Mapping[str, Array]) -> str | None:
        return Loaded(call=module, inputs=inputs).complaint(feed)

    inputs, found = derive(module, job.inputs, job.example, works)
    return Loaded(call=module, inputs=inputs, module=module, scripted=True, notes=list(found))
