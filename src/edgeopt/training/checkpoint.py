"""A training on disk: one safetensors file, from which it goes on as if it had never stopped.

The tensors are ``student/NAME``, ``losses/NAME``, ``best/NAME`` and ``optimizer/INDEX/NAME``; the
file's metadata hold everything else as JSON. The file is there whole or not at all, is written by
one process, and nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeopt.errors import OutputError, SourceError
from edgeopt.files.atomic import writing

__all__ = [
    "NAME",
    "Checkpoint",
    "copied",
    "fill",
    "fill_optimizer",
    "load",
    "optimizer_state",
    "save",
]

#: The file in a checkpoint's folder.
NAME = "checkpoint.safetensors"

_KEY = "edgeopt.training"
_FORMAT = 1

#: Differences that are named, when a checkpoint is of another run.
_NAMED = 3


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors by kind and name, and the run's own state."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A module's state, as copies that later updates leave alone."""
    state = module.state_dict()
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def save(folder: Path, saved: Checkpoint, fingerprint: Mapping[str, str]) -> None:
    """Write the checkpoint in place of the one before. Raises OutputError as files do."""
    flat = {
        f"{kind}/{name}": tensor.detach().cpu().contiguous()
        for kind, tensors in saved.tensors.items()
        for name, tensor in tensors.items()
    }
    seen: set[int] = set()
    for name, tensor in flat.items():  # the format has no two names for the same bytes
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:
            flat[name] = tensor.clone()
        seen.add(storage)
    document = {"format": _FORMAT, "fingerprint": dict(fingerprint), "state": saved.state}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}; give another folder") from error
    with writing(folder / NAME) as temporary:
        save_file(flat, temporary, {_KEY: json.dumps(document, sort_keys=True)})


def load(folder: Path, fingerprint: Mapping[str, str]) -> Checkpoint | None:
    """The checkpoint in a folder, None where there is none.

    Raises SourceError for one that is truncated or of another run, naming what differs.
    """
    path = folder / NAME
    for left in folder.glob(f".{path.stem}.*.tmp{path.suffix}"):
        left.unlink(missing_ok=True)  # of a process that was killed while it wrote
    if not path.exists():
        return None
    advice = "remove it to begin anew, or give another folder"
    tensors: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})[_KEY])
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']}")
            theirs, state = dict(document["fingerprint"]), dict(document["state"])
            _require_same(path, theirs, fingerprint)
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                kind, _, name = key.partition("/")
                tensors.setdefault(kind, {})[name] = file.get_tensor(key)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise SourceError(
            f"{path}: truncated, or no checkpoint of a training ({str(error)[:120]}); {advice}"
        ) from error
    return Checkpoint(tensors, state)


def _require_same(path: Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if not names:
        return
    told = [
        f"{name} was {theirs.get(name, 'not there')}, is {ours.get(name, 'not there')}"
        for name in sorted(names)[:_NAMED]
    ]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    raise SourceError(
        f"{path}: a checkpoint of another run: {'; '.join(told)}{more}; "
        "give another folder, or what it was begun with"
    )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load a module's state. Raises SourceError naming a tensor that is missing or of another
    shape."""
    ours = module.state_dict()
    for name, value in ours.items():
        shape = tuple(tensors[name].shape) if name in tensors else None
        if shape != tuple(value.shape):
            was = "not there" if shape is None else list(shape)
            raise SourceError(
                f"{path}: a checkpoint of another run: tensor {name} was {was}, is "
                f"{list(value.shape)}; give another folder, or what it was begun with"
            )
    module.load_state_dict({name: tensors[name] for name in ours})


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors, as ``INDEX/NAME``, parameters counted through its groups."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": value
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def fill_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], path: Path
) -> None:
    """The other way round. Raises SourceError for an index that the optimizer does not have."""
    document = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        place = int(index) if index.isdecimal() else len(parameters)
        if place >= len(parameters) or value.shape not in (parameters[place].shape, ()):
            raise SourceError(
                f"{path}: a checkpoint of another run: the optimizer's {key} is "
                f"{list(value.shape)}; give another folder, or what it was begun with"
            )
        state.setdefault(place, {})[name] = value
    optimizer.load_state_dict({**document, "state": state})
