"""Give a torch module its weights from a mapped file, without a copy.

The module is built on the meta device, where tensors have shapes and no memory; each is replaced by
a tensor over the file's own pages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.calls import checked
from edgeopt.errors import MissingExtraError, SourceError, UsageError
from edgeopt.files.weights import Weights, load_weights

__all__ = ["LoadedInto", "load_into", "tensor_over"]

#: What numpy knows through ml_dtypes and torch under the same name, as whole bytes.
_BY_BITS = ("bfloat16", "float8_")


@dataclass(frozen=True)
class LoadedInto:
    """What :func:`load_into` did, in the module's names (``unexpected``: in the file's).

    ``assigned`` tensors are on the file's pages. ``missing`` ones stay as the module had them, and
    so do ``empty`` buffers, which no file holds and which are still on the meta device.
    """

    assigned: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


@checked
def load_into(
    module: Any,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
) -> LoadedInto:
    """Replace a module's parameters and buffers by the tensors of a model file, mapped.

    Tensors keep the file's dtype; GGUF's block types and edgeopt's packed weights are dequantized
    into memory. Tied parameters stay tied, and need to be in the file under one name only. Nothing
    is changed where this raises.

    Processes share the pages of the file until they write to them: a page that is changed in place,
    by an optimizer say, becomes this process's own copy, and the file stays as it is.

    Args:
        module: a ``torch.nn.Module``, best built under ``torch.device("meta")``.
        path: any file that :func:`edgeopt.load_weights` reads.
        strict: raise where the file and the module do not have the same tensors. Otherwise take
            what both have, and say what is left.
        prefix: what the file's names begin with before the module's own (``"model."``); tensors
            with other names are not looked at.
        names: the file's names (without ``prefix``) to the module's, where they differ, as a
            GGUF's do; names that it does not have are taken as they are.

    Raises:
        SourceError: the file has other tensors or other shapes, or another value for tied ones.
        UsageError: ``module`` is no torch module.
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch", "load_into") from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"load_into takes a torch.nn.Module, got {type(module).__name__}")
    weights = load_weights(path)
    found = _by_module_name(weights, prefix, names or {})
    _tie(module)
    groups = _tied(module)
    missing = tuple(
        name for group in groups for name in group if not any(n in found for n in group)
    )
    known = {name for group in groups for name in group}
    unexpected = tuple(found[name] for name in found if name not in known)
    made = _made_buffers(module)
    empty = tuple(name for name in _empty_buffers(module) if name not in made)
    if strict:
        _require_all(weights, missing, unexpected, empty)
    chosen = [_choose(weights, module, group, found) for group in groups]
    # All is checked: from here on the module changes.
    for name, tensor in made.items():
        _assign(module, [name], tensor)
    for group, stored in zip(groups, chosen, strict=True):
        if stored is not None:
            _assign(module, group, tensor_over(weights.writable(stored)))
    assigned = tuple(
        name for group, stored in zip(groups, chosen, strict=True) if stored for name in group
    )
    return LoadedInto(assigned, missing, unexpected, empty)


def _by_module_name(weights: Weights, prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """The module's name of each of the file's tensors that begin with ``prefix``."""
    found: dict[str, str] = {}
    for stored in weights:
        if not stored.startswith(prefix):
            continue
        bare = stored[len(prefix) :]
        name = names.get(bare, bare)
        if name in found:
            raise SourceError(
                f"{weights.source.path}: {found[name]!r} and {stored!r} both stand for {name!r}; "
                "names has to tell them apart"
            )
        found[name] = stored
    return found


def _tied(module: Any) -> list[tuple[str, ...]]:
    """Names of the state that a file holds; those of one and the same tensor together."""
    groups: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return [tuple(group) for group in groups.values()]


def _tie(module: Any) -> None:
    """Tie what a model of transformers ties: on the meta device nothing is, although the file has
    such a parameter under one name only."""
    config, tie = getattr(module, "config", None), getattr(module, "tie_weights", None)
    if config is not None and callable(tie):
        tie()


def _made_buffers(module: Any) -> dict[str, Any]:
    """Buffers that no file has and a module of transformers computes from its configuration: the
    inverse frequencies of rotary positions."""
    made: dict[str, Any] = {}
    empty = set(_empty_buffers(module))
    for path, part in module.named_modules():
        config = getattr(part, "config", None)
        names = [name for name, _ in part.named_buffers(recurse=False)]
        wanted = [n for n in names if f"{path}.{n}".lstrip(".") in empty]
        if config is None or not wanted:
            continue
        fresh = _built_again(type(part), config)
        buffers = {} if fresh is None else dict(fresh.named_buffers(recurse=False))
        for name in wanted:
            tensor = buffers.get(name)
            old = part.get_buffer(name)
            if tensor is not None and not tensor.is_meta and tensor.shape == old.shape:
                made[f"{path}.{name}".lstrip(".")] = tensor.to(old.dtype)
    return made


def _built_again(kind: Any, config: Any) -> Any:
    """The same small module on the CPU; None where it is not made of its configuration alone."""
    import torch

    with torch.device("cpu"):
        try:
            return kind(config)
        except Exception:  # noqa: BLE001 - another's constructor; what is not built stays empty
            return None


def _empty_buffers(module: Any) -> tuple[str, ...]:
    """Buffers without memory that are no part of the module's state."""
    state = module.state_dict(keep_vars=True)
    return tuple(name for name, b in module.named_buffers() if b.is_meta and name not in state)


def _require_all(
    weights: Weights, missing: Sequence[str], unexpected: Sequence[str], empty: Sequence[str]
) -> None:
    path = weights.source.path
    if missing or unexpected:
        parts = [f"has no {_some(missing)}" if missing else ""]
        parts += [f"has {_some(unexpected)} that the module has not" if unexpected else ""]
        raise SourceError(
            f"{path}: {', and '.join(filter(None, parts))}; "
            "give names or prefix, or strict=False to take what fits"
        )
    if empty:
        raise SourceError(
            f"{path}: the module's {_some(empty)} is in no file and has no memory; build the "
            "module with its buffers on the CPU, or give strict=False and fill what is left"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"


def _choose(
    weights: Weights, module: Any, group: Sequence[str], found: Mapping[str, str]
) -> str | None:
    """The file's tensor for one of the module's, under whichever of its names; None: none."""
    stored = [found[name] for name in group if name in found]
    if not stored:
        return None
    shape = tuple(module.state_dict(keep_vars=True)[group[0]].shape)
    for name in stored:
        got = weights.describe(name).shape
        if got != shape:
            raise SourceError(
                f"{weights.source.path}: tensor {name!r} is {list(got)}, the module's "
                f"{group[0]!r} is {list(shape)}; build the module for this file"
            )
    first = weights.describe(stored[0])
    for name in stored[1:]:
        other = weights.describe(name)
        shared = first.storage is not None and first.storage == other.storage
        if not shared and not np.array_equal(weights[first.name], weights[name]):
            raise SourceError(
                f"{weights.source.path}: {first.name!r} and {name!r} differ, the module ties them; "
                "build it without the tie"
            )
    return stored[0]


def _assign(module: Any, group: Sequence[str], tensor: Any) -> None:
    """Put one tensor under all of its names, as a parameter where it was one."""
    import torch

    made: Any = None
    for name in group:
        owner, _, leaf = name.rpartition(".")
        place = module.get_submodule(owner)
        if leaf in place._parameters:
            if made is None:
                learns = place._parameters[leaf].requires_grad and tensor.is_floating_point()
                made = torch.nn.Parameter(tensor, requires_grad=learns)
            place._parameters[leaf] = made
        else:
            place._buffers[leaf] = tensor


def tensor_over(array: NDArray[Any]) -> Any:
    """A torch tensor over a writable array's memory, which it keeps alive; strides and dtype kept.

    SourceError where torch has no such dtype.
    """
    import torch

    name = array.dtype.name
    # numpy's own dtypes go as they are; those of ml_dtypes by their bits.
    foreign = array.dtype.type.__module__ != "numpy"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or (foreign and not name.startswith(_BY_BITS)):
        raise SourceError(f"torch has no {name}; load_weights gives such a tensor as an array")
    bits = array.view(f"i{array.dtype.itemsize}") if foreign else array
    tensor = torch.from_numpy(bits)
    return tensor.view(dtype) if foreign else tensor
