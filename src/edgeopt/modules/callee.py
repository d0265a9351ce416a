"""A torch file or folder as something to call with a feed, by what kind it is.

Unlike capturing, which makes everything float32, this keeps the dtypes of the file.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeopt.core import Array
from edgeopt.errors import InputsError, SourceError, UnsafeError
from edgeopt.files.weights import load_weights
from edgeopt.modules.exported import ProgramModule, exported
from edgeopt.modules.loading import (
    argument_names,
    build,
    fill_in,
    matched,
    needs_trust,
    scripted,
    tensor_of,
    unpickled,
)
from edgeopt.modules.reasons import attempt, one_line

__all__ = ["Callee", "load", "state_in"]

#: Kinds of file that torch itself reads the weights of; what else holds some, edgeopt maps.
_OWN_WEIGHTS = ("torch-state-dict", "torch-checkpoint")

#: How deep in a checkpoint a state dict is looked for.
_DEPTH = 3


@dataclass(frozen=True)
class Callee:
    """A module, and how it is called.

    ``order`` are the names of its inputs where it takes them by position in an order of its own,
    None where the feed's names decide. ``takes`` are the only names that it is given, None for all.
    ``needs`` are names that it cannot do without. ``fixed`` are arguments of every call.
    ``dtypes`` are those of inputs that say theirs. ``weights_by`` says who read the weights.
    """

    module: Any
    weights_by: str = "torch"
    order: tuple[str, ...] | None = None
    takes: frozenset[str] | None = None
    needs: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def bound(self, feed: Mapping[str, Array], device: str) -> Callable[[], object]:
        """One call with the feed, copied to ``device``, ready to be made again and again.

        Floats are cast to what the module takes, where it has one width of them. Raises InputsError
        for an input that is missing.
        """
        for name in (*(self.order or ()), *self.needs):
            if name not in feed:
                raise InputsError(f"input {name} is missing from {', '.join(feed) or 'nothing'}")
        names = self.order or tuple(n for n in feed if self.takes is None or n in self.takes)
        tensors = {name: self._tensor(name, feed).to(device) for name in names}
        if isinstance(self.module, ProgramModule):
            # Arranged once: called as its user calls it.
            args, kwargs = self.module.arguments(*tensors.values())
            return partial(self.module.program, *args, **kwargs)
        if self._by_name(names):
            return partial(self.module, **tensors, **self.fixed)
        return partial(self.module, *tensors.values(), **self.fixed)

    def _by_name(self, names: tuple[str, ...]) -> bool:
        if self.takes is not None:
            return True
        required, optional = argument_names(self.module)
        return set(names) <= {*required, *optional}

    def _tensor(self, name: str, feed: Mapping[str, Array]) -> torch.Tensor:
        tensor = tensor_of(feed[name], feed[name].dtype.name)
        wanted = self.dtypes.get(name) or self.width
        if tensor.is_floating_point() and wanted is not None and wanted.is_floating_point:
            tensor = tensor.to(wanted)
        return tensor

    @property
    def width(self) -> torch.dtype | None:
        """The one dtype of the module's floats; None where it has none, or several."""
        found = self.float_dtypes
        return found.pop() if len(found) == 1 else None

    @property
    def float_dtypes(self) -> set[torch.dtype]:
        return {p.dtype for p in self.module.parameters() if p.is_floating_point()}


def load(path: Path, kind: str, *, model: str | None = None, trust: bool = False) -> Callee:
    """Load by kind, for evaluation. ``model`` is code for a file's weights; ``trust`` lets a file's
    own code run.

    Raises UnsafeError where loading would run code that nobody has allowed, SourceError,
    CaptureError, UsageError, MissingExtraError.
    """
    if model is not None:
        return _filled(path, kind, build(model), trust)
    needs_trust(path, kind, trust)
    if kind not in _LOADERS:
        raise SourceError(
            f"{path}: weights have no code: give --model package.module:callable to run them"
        )
    return _LOADERS[kind](path, trust)


def _filled(path: Path, kind: str, module: nn.Module, trust: bool) -> Callee:
    if kind in _OWN_WEIGHTS:
        state = state_in(_stored(path, trust), module)
        if not state:
            raise SourceError(f"{path}: holds none of the weights of {type(module).__name__}")
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        filled = fill_in(module, shapes, state.__getitem__)
        return Callee(filled.module.eval(), notes=filled.notes)
    weights = load_weights(path)
    shapes = {name: tuple(weights.describe(name).shape) for name in weights}

    def tensor(name: str) -> torch.Tensor:
        return tensor_of(weights[name], weights.describe(name).dtype)

    filled = fill_in(module, shapes, tensor)
    return Callee(filled.module.eval(), weights_by="edgeopt", notes=filled.notes)


def _stored(path: Path, trust: bool) -> Any:
    stored, error = attempt(lambda: torch.load(path, map_location="cpu", weights_only=True))
    if isinstance(error, pickle.UnpicklingError):
        if not trust:
            raise UnsafeError(
                f"{path}: torch finds more than tensors in it; give --trust-pickle if you trust it"
            )
        stored, error = attempt(lambda: torch.load(path, map_location="cpu", weights_only=False))
    if error is not None:
        raise SourceError(f"{path}: torch cannot load it: {one_line(error)}")
    return stored


def state_in(stored: Any, module: nn.Module) -> dict[str, torch.Tensor]:
    """Of the mappings of tensors in a checkpoint, the one with most of the module's names.

    Names count with and without a wrapper's prefix. Empty where there is none.
    """
    own = module.state_dict()

    def shared(state: Mapping[str, torch.Tensor]) -> int:
        return len(matched(own, list(state)))

    states = [state for state in _states(stored, _DEPTH) if shared(state)]
    return max(states, key=shared, default={})


def _states(value: Any, depth: int) -> Iterator[dict[str, torch.Tensor]]:
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping):
        return
    tensors = {
        name: tensor
        for name, tensor in value.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
    if tensors:
        yield tensors
    if depth:
        for inner in value.values():
            yield from _states(inner, depth - 1)


def _scripted(path: Path, trust: bool) -> Callee:
    return Callee(scripted(path))


def _exported(path: Path, trust: bool) -> Callee:
    found = exported(path, trust)
    dtypes = {spec.name: getattr(torch, spec.dtype) for spec in found.inputs}
    return Callee(ProgramModule(found.program), order=found.names, dtypes=dtypes)


def _pickled(path: Path, trust: bool) -> Callee:
    return Callee(unpickled(path).eval())


def _folder(path: Path, trust: bool) -> Callee:
    from edgeopt.modules.pretrained import constants, encoder_of, pretrained, with_head

    model, halved = encoder_of(pretrained(path, trust))
    whole = with_head(path, model)
    required, optional = argument_names(model)
    return Callee(
        model if whole is None else whole,
        weights_by="transformers",
        takes=frozenset({*required, *optional}),
        needs=() if whole is None else ("attention_mask",),
        fixed=constants(model) if whole is None else {},
        notes=("the encoder alone: a decoder needs a loop around it",) if halved else (),
    )


_LOADERS: Mapping[str, Callable[[Path, bool], Callee]] = {
    "torchscript": _scripted,
    "torch-exported": _exported,
    "torch-module": _pickled,
    "hf-folder": _folder,
}
