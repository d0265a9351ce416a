"""A model's own code, given the shapes that pruning left: so that it can be trained on with it.

The state dict says how large each parameter is; what a module remembers of its sizes
(``in_channels``, ``num_heads``) follows from those, or stands in the description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import SourceError
from edgeopt.pruning.depth.removal import remove_blocks

__all__ = ["rebuild", "sizes_of"]

_Sizes = Callable[[Any], Mapping[str, Any]]


def sizes_of(module: nn.Module) -> dict[str, dict[str, int]]:
    """The whole numbers that each module of ``module`` remembers (``groups``, ``num_heads``), for
    the description: what :func:`rebuild` cannot tell from weights."""
    found: dict[str, dict[str, int]] = {}
    for name, part in module.named_modules():
        numbers = {
            key: value
            for key, value in vars(part).items()
            if type(value) is int and not key.startswith("_")
        }
        if numbers:
            found[name] = numbers
    return found


def rebuild(
    module: nn.Module, state: Mapping[str, Tensor], description: Mapping[str, Any]
) -> nn.Module:
    """Fit ``module``, as its code makes it, to a pruned model, in place, and load its weights.

    ``state`` is what :func:`edgeopt.modules.state_dict.read_state` gives, ``description`` the JSON
    beside it: blocks that were removed are removed here, ``sizes`` (:func:`sizes_of`) are set where
    the module has such numbers. Parameters and buffers take the state's shapes, tied ones together,
    and layers of torch the attributes that go with them. Returns the module.

    Raises SourceError where the two are not of one model: a name that only one of them has, a
    tensor of another rank, or one that would have to grow.
    """
    _require_version(description)
    gone = _blocks_removed(description)
    known = dict(module.named_modules())
    if missing := [name for name in gone if name not in known]:
        raise SourceError(f"{_called(module)} has no block {missing[0]}, which was removed")
    remove_blocks(module, gone)
    own = module.state_dict(keep_vars=True)
    _require_names(module, own, state)
    for name, tensor in own.items():
        _require_shape(module, name, tensor, state[name])
    _reshape(module, state)
    _set_sizes(module, description.get("sizes", {}))
    for part in module.modules():
        _set_attributes(part)
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            tensor.copy_(state[name])
    return module


def _called(module: nn.Module) -> str:
    return type(module).__name__


def _require_version(description: Mapping[str, Any]) -> None:
    version = description.get("edgeopt_pruned")
    if version != 1:
        raise SourceError(
            f"the description has edgeopt_pruned {version!r}, this edgeopt reads 1; give the JSON "
            "that was written beside the pruned model"
        )


def _blocks_removed(description: Mapping[str, Any]) -> list[str]:
    cuts = [cut for pruning in description.get("prunings", ()) for cut in pruning.get("cuts", ())]
    return [c["layer"] for c in cuts if c.get("kind") == "blocks" and c.get("after") == 0]


def _require_names(
    module: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    for names, where in (
        ([n for n in own if n not in state], "not in the pruned state"),
        ([n for n in state if n not in own], f"not in {_called(module)}"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise SourceError(
                f"the pruned state is not of {_called(module)}: {', '.join(names[:3])}{more} "
                f"{where}; give the code that the pruned model was made from"
            )


def _require_shape(module: nn.Module, name: str, tensor: Tensor, given: Tensor) -> None:
    before, after = tuple(tensor.shape), tuple(given.shape)
    if len(before) != len(after) or any(b < a for b, a in zip(before, after, strict=True)):
        raise SourceError(
            f"{name} is {list(before)} in {_called(module)} and {list(after)} in the pruned state, "
            "which is no part of it; give the code that the pruned model was made from"
        )


def _reshape(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """New tensors of the state's shapes, one for all the names of a tied one."""
    made: dict[int, Tensor] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for held in (part._parameters, part._buffers):
            for key, tensor in held.items():
                name = f"{prefix}.{key}" if prefix else key
                if tensor is None or name not in state:
                    continue
                if id(tensor) in made:
                    held[key] = made[id(tensor)]
                elif tensor.shape != state[name].shape:
                    empty = torch.empty(state[name].shape, dtype=tensor.dtype, device=tensor.device)
                    new = (
                        nn.Parameter(empty, tensor.requires_grad)
                        if isinstance(tensor, nn.Parameter)
                        else empty
                    )
                    made[id(tensor)] = held[key] = new


def _set_sizes(module: nn.Module, sizes: Mapping[str, Mapping[str, int]]) -> None:
    parts = dict(module.named_modules())
    for name, numbers in sizes.items():
        for key, value in numbers.items():
            held = parts[name].__dict__ if name in parts else {}
            # Numbers where the code has numbers: a description can change nothing else.
            if type(value) is int and type(held.get(key)) is int:
                held[key] = value


# ---------------------------------------------------------------------- what layers remember


def _linear(part: Any) -> Mapping[str, Any]:
    rows, columns = part.weight.shape
    return {"out_features": rows, "in_features": columns}


def _convolution(part: Any) -> Mapping[str, Any]:
    out, per_group = part.weight.shape[:2]
    groups = part.groups
    if groups == part.in_channels > 1 and per_group == 1:  # depthwise: one group a channel
        groups = out // max(1, part.out_channels // part.in_channels)
    return {"out_channels": out, "in_channels": per_group * groups, "groups": groups}


def _transposed(part: Any) -> Mapping[str, Any]:
    into, per_group = part.weight.shape[:2]
    return {"in_channels": into, "out_channels": per_group * part.groups}


def _batch_norm(part: Any) -> Mapping[str, Any]:
    known = part.running_mean if part.weight is None else part.weight
    return {} if known is None else {"num_features": known.shape[0]}


def _layer_norm(part: Any) -> Mapping[str, Any]:
    return {} if part.weight is None else {"normalized_shape": tuple(part.weight.shape)}


def _group_norm(part: Any) -> Mapping[str, Any]:
    return {} if part.weight is None else {"num_channels": part.weight.shape[0]}


def _embedding(part: Any) -> Mapping[str, Any]:
    rows, columns = part.weight.shape
    padding = part.padding_idx
    if padding is not None and padding >= rows:
        raise SourceError(
            f"an embedding of {rows} rows whose padding row is {padding}: its tokens were numbered "
            "anew; open the folder that was written instead"
        )
    return {"num_embeddings": rows, "embedding_dim": columns}


_LAYERS: tuple[tuple[tuple[type, ...], _Sizes], ...] = (
    ((nn.Linear,), _linear),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    (
        (
            *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
            *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        ),
        _batch_norm,
    ),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.Embedding,), _embedding),
)


def _set_attributes(part: nn.Module) -> None:
    for kinds, sizes in _LAYERS:
        if isinstance(part, kinds):
            for key, value in sizes(part).items():
                setattr(part, key, value)
            return
