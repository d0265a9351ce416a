"""Blocks taken out of a module, and what knows of their number or their place changed to match."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

__all__ = ["remove_blocks"]

#: Attributes that say how many members a list has, of the module around it and of its
#: configuration: a decoder's and an encoder's own names come before those of both.
_DECODER = (("decoder_layers",), ("num_decoder_layers",), ("num_hidden_layers",))
_ENCODER = (("encoder_layers", "num_encoder_layers", "num_hidden_layers", "num_layers"),)
_ATTRIBUTES = ("num_layers", "n_layers", "n_layer", "num_blocks", "n_blocks", "depth")

#: Where a part of a block keeps the block's place in its list.
_PLACES = ("layer_idx", "layer_id", "layer_index")


def remove_blocks(module: nn.Module, names: Sequence[str], undo: ExitStack | None = None) -> None:
    """Take the blocks out of ``module``, in place, without running it.

    Members of a ModuleList leave it, and those behind them move up; anything else is replaced by
    an Identity. In a transformers model the configuration's number of layers and its lists with
    one entry a layer follow. Callbacks that put everything back are pushed to ``undo``.
    """
    undo = ExitStack() if undo is None else undo
    lists: dict[str, list[int]] = {}
    for name in names:
        container, _, key = name.rpartition(".")
        holder = module.get_submodule(container)
        if isinstance(holder, nn.ModuleList):
            lists.setdefault(container, []).append(int(key))
        else:
            undo.callback(holder.register_module, key, module.get_submodule(name))
            holder.register_module(key, nn.Identity())
    for container, gone in lists.items():
        _shorten(module, container, frozenset(gone), undo)


def _shorten(module: nn.Module, name: str, gone: frozenset[int], undo: ExitStack) -> None:
    blocks = module.get_submodule(name)
    assert isinstance(blocks, nn.ModuleList)
    before = list(blocks)
    stay = [at for at in range(len(before)) if at not in gone]
    undo.callback(_refill, blocks, before)
    _refill(blocks, [before[at] for at in stay])
    for place, at in enumerate(stay):
        for part in before[at].modules():
            for attribute in _PLACES:
                if getattr(part, attribute, None) == at:
                    _set(part, attribute, place, undo)
    if stay and stay[0] != 0:
        _hand_on_bias(before[0], before[stay[0]], undo)
    parent = module.get_submodule(name.rpartition(".")[0])
    for attribute in _ATTRIBUTES:
        if _is_count(getattr(parent, attribute, None), len(before)):
            _set(parent, attribute, len(stay), undo)
    config = _config_of(module, name)
    if config is not None:
        _change_config(config, "decoder" in name.split("."), len(before), stay, undo)


def _refill(blocks: nn.ModuleList, members: Sequence[nn.Module]) -> None:
    while len(blocks):
        del blocks[len(blocks) - 1]
    blocks.extend(members)


def _hand_on_bias(old: nn.Module, new: nn.Module, undo: ExitStack) -> None:
    """T5's first block holds the relative position bias that all blocks use."""
    parts = dict(new.named_modules())
    for name, part in old.named_modules():
        other = parts.get(name)
        if other is None or getattr(other, "has_relative_attention_bias", True):
            continue
        if getattr(part, "has_relative_attention_bias", False):
            _set(other, "has_relative_attention_bias", True, undo)
            undo.callback(delattr, other, "relative_attention_bias")
            other.relative_attention_bias = part.relative_attention_bias


def _config_of(module: nn.Module, name: str) -> Any:
    """The configuration of the innermost part around ``name`` that has one."""
    while name:
        name = name.rpartition(".")[0]
        config = getattr(module.get_submodule(name), "config", None)
        if config is not None:
            return config
    return None


def _change_config(
    config: Any, decoder: bool, before: int, stay: Sequence[int], undo: ExitStack
) -> None:
    for names in _DECODER if decoder else _ENCODER:
        known = [n for n in names if _is_count(getattr(config, n, None), before)]
        for name in known:
            _set(config, name, len(stay), undo)
        if known:
            break
    for key, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == before and _by_layer(key):
            _set(config, key, type(value)(value[at] for at in stay), undo)


def _by_layer(key: str) -> bool:
    """Whether a list of that name can have an entry a layer: ids of tokens cannot."""
    return "layer" in key or key.endswith(("_types", "_pattern"))


def _is_count(value: object, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == count


def _set(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
