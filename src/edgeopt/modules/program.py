"""A changed model as files: the program, its weights, and what was done to it.

``OUT.pt`` is an ExportedProgram (``torch.export``), which runs without the model's code and which
``edgeopt quantize`` takes; nothing in it is pickled, so it needs nobody's trust.
``OUT.state.safetensors`` is the state dict, for those who have the code
(:func:`edgeopt.pruning.rebuild.rebuild`), and ``OUT.json`` says what was cut. All three are the
same bytes every time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.core import Array, InputSpec
from edgeopt.errors import SourceError, UnsafeError
from edgeopt.files.atomic import writing_group
from edgeopt.files.torch_repack import repack
from edgeopt.modules.export import export
from edgeopt.modules.exported import ProgramModule, exported
from edgeopt.modules.model import TorchModel
from edgeopt.modules.state_dict import write_state

__all__ = [
    "description_path",
    "load_trainable",
    "save_program",
    "state_path",
    "write_description",
    "write_program",
]

_STAYS = (
    "BatchNorm stays at its statistics and dropout off: the file holds the network as it runs; "
    "give the code to train those too"
)


def state_path(out: Path) -> Path:
    """Where the state dict of ``out`` goes: ``model.pt`` -> ``model.state.safetensors``."""
    return out.with_name(f"{out.stem}.state.safetensors")


def description_path(out: Path) -> Path:
    """Where the description of ``out`` goes: ``model.pt`` -> ``model.json``."""
    return out.with_name(f"{out.stem}.json")


def save_program(
    model: TorchModel,
    out: Path,
    description: Mapping[str, Any],
    *,
    sources: Iterable[Path] = (),
) -> list[Path]:
    """Write the program, the state dict and the description, all three or none.

    Returns their paths, the program's first. Raises OutputError where one cannot be written or is
    one of ``sources``, SourceError where torch cannot export the module.
    """
    targets = [description_path(out), state_path(out), out]
    with writing_group(targets, source_paths=sources, named=True) as (beside, state, program):
        write_program(model, program)
        write_state(model.module, state)
        write_description(description, beside)
    return [out, state_path(out), description_path(out)]


def write_program(model: TorchModel, path: Path) -> tuple[str, ...]:
    """Write the module as it is now, in evaluation mode, as an ExportedProgram.

    Returns notes: free dimensions that torch could not keep free, and why loading the file needs
    trust, where it does. Raises SourceError where torch cannot export the module at all.
    """
    program, inputs, notes = export(model)
    program.example_inputs = None
    raw = path.with_name(f"{path.name}.raw.pt2")
    try:
        torch.export.save(program, raw)
        extra = {"version": 1, "inputs": {spec.name: list(spec.shape) for spec in inputs}}
        try:
            with path.open("wb") as stream:
                repack(raw, stream, extra)
        except UnsafeError as error:
            path.write_bytes(raw.read_bytes())
            reason = str(error).removeprefix(f"{raw}: ").partition(";")[0]
            notes += (f"opening the file again needs --trust-pickle: {reason}",)
    finally:
        raw.unlink(missing_ok=True)
    return notes


def write_description(description: Mapping[str, Any], path: Path) -> None:
    """Write the description as JSON, keys in order."""
    text = json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def load_trainable(path: Path, *, trust: bool = False) -> TorchModel:
    """A written program as a model to train on or to cut again, without the code it was made from.

    Its parameters have the names that they had. Errors as
    :func:`edgeopt.modules.exported.exported`, and SourceError where nothing in it is a
    parameter.
    """
    found = exported(path, trust)
    whole = ProgramModule(found.program)
    module = whole.trainable()
    if not any(True for _ in module.parameters()):
        raise SourceError(f"{path}: the program has no parameters; nothing to train")
    values = {n.name: n.meta["val"] for n in found.program.graph.nodes if n.op == "placeholder"}
    example = {spec.name: _example(spec, values[spec.name]) for spec in found.inputs}
    stays = any(
        "batch_norm" in str(node.target) or "dropout" in str(node.target)
        for node in found.program.graph.nodes
    )
    return TorchModel(
        module, found.inputs, example, positional=True, notes=(_STAYS,) if stays else ()
    )


def _example(spec: InputSpec, value: Any) -> Array:
    """Standard normal floats, zeros else, of the sizes that the program was made at."""
    shape = tuple(
        size if isinstance(size, int) else int(size.node.hint or 2) for size in value.shape
    )
    sized = replace(spec, shape=shape)
    if np.dtype(sized.dtype).kind != "f":
        return np.zeros(shape, sized.dtype)
    return np.random.default_rng(0).standard_normal(shape).astype(sized.dtype)
