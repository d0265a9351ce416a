"""Models that a Python caller has in memory, as the files that everything behind a verb works on.

A torch module becomes the file of its state dict, with a copy of the module itself as its code; a
program or an ONNX model is saved as what it is; tensors by name become a file of weights. Files lie
in a folder that goes when the call is over; what is made of them goes, by default, to the current
folder.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import given
from edgeopt.errors import CallError, SourceError
from edgeopt.options.kinds import is_module

__all__ = ["Written", "write"]


@dataclass(frozen=True)
class Written:
    """A model from memory: the file that holds it, the code to put its weights into (None: it needs
    none), and what a person calls it."""

    path: Path
    model: str | None
    name: str


def write(value: Any, folder: Path) -> Written:
    """``value`` as a file in ``folder``. CallError where it is no model, SourceError for one that
    cannot be saved."""
    for is_one, writer in _WRITERS:
        if is_one(value):
            try:
                return writer(value, folder)
            except (CallError, SourceError):
                raise
            except Exception as error:  # torch's and the model's own code may raise anything
                reason = " ".join(str(error).split())[:200]
                raise SourceError(
                    f"{type(value).__name__} in memory cannot be saved: {reason}; save it, and give"
                    " the file"
                ) from error
    raise CallError(
        f"a {type(value).__name__} is no model; give a path, a torch module or tensors by name"
    )


def _torch() -> Any:
    """torch where it is loaded: whoever has something of it in hand has loaded it."""
    return sys.modules.get("torch")


def _is_scripted(value: Any) -> bool:
    return is_module(value) and isinstance(value, _torch().jit.ScriptModule)


def _is_program(value: Any) -> bool:
    torch = _torch()
    return torch is not None and isinstance(value, torch.export.ExportedProgram)


def _is_onnx(value: Any) -> bool:
    onnx = sys.modules.get("onnx")
    return onnx is not None and isinstance(value, onnx.ModelProto)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Mapping)


def _place(folder: Path, name: str, suffix: str) -> Path:
    path = folder / f"{name}{suffix}"
    given.stand_in(path, Path(f"{name}{suffix}"))
    return path


def _write_module(module: Any, folder: Path) -> Written:
    torch = _torch()
    name = type(module).__name__
    state = {k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
    if any(tensor.is_meta for tensor in state.values()):
        raise SourceError(f"{name} is on the meta device, where there are no weights; load some")
    if not state:
        raise SourceError(f"{name} has no weights; there is nothing to make smaller")
    path = _place(folder, name, ".pt")
    torch.save(_on_cpu(state), path)
    own = copy.deepcopy(module).to("cpu")
    return Written(path, given.add(own), name)


def _on_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors as they are on the CPU: shared ones stay shared, others are as long as they look."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _write_scripted(module: Any, folder: Path) -> Written:
    name = str(getattr(module, "original_name", type(module).__name__))
    path = _place(folder, name, ".pt")
    module.save(str(path))
    return Written(path, None, name)


def _write_program(program: Any, folder: Path) -> Written:
    path = _place(folder, "program", ".pt2")
    _torch().export.save(program, str(path))
    return Written(path, None, "program")


def _write_onnx(model: Any, folder: Path) -> Written:
    name = "model"
    path = _place(folder, name, ".onnx")
    path.write_bytes(model.SerializeToString(deterministic=True))
    return Written(path, None, name)


def _write_tensors(tensors: Mapping[Any, Any], folder: Path) -> Written:
    if not tensors:
        raise CallError("a model's tensors are given by name, and there are none")
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise CallError(f"a tensor's name is a text, not {type(name).__name__} {name!r}")
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise CallError(f"{name!r} is {type(value).__name__}, not an array or a tensor")
    torch = _torch()
    name = "weights"
    if torch is not None and any(isinstance(v, torch.Tensor) for v in tensors.values()):
        path = _place(folder, name, ".pt")
        as_tensors = {k: torch.as_tensor(v) for k, v in tensors.items()}
        torch.save(_on_cpu(as_tensors), path)
        return Written(path, None, name)
    from edgeopt.files import safetensors

    path = _place(folder, name, ".safetensors")
    arrays = {k: np.ascontiguousarray(v).reshape(np.shape(v)) for k, v in tensors.items()}
    odd = next((k for k, v in arrays.items() if v.dtype.kind not in "biuf"), None)
    if odd is not None:
        raise CallError(f"{odd!r} holds {arrays[odd].dtype}; numbers or booleans are needed")
    entries = [safetensors.TensorEntry(k, v.dtype.name, v.shape) for k, v in arrays.items()]
    with safetensors.filling(path, entries, {}) as put:
        for k, array in arrays.items():
            put(k, array.tobytes())
    return Written(path, None, name)


_Writer = Callable[[Any, Path], Written]

#: The first that fits is taken: a scripted module is a module too.
_WRITERS: tuple[tuple[Callable[[Any], bool], _Writer], ...] = (
    (_is_scripted, _write_scripted),
    (is_module, _write_module),
    (_is_program, _write_program),
    (_is_onnx, _write_onnx),
    (_is_tensors, _write_tensors),
)
