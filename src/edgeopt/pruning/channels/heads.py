"""Attention heads as units to prune: found by the names that their layers go by.

A block is three linear layers (queries, keys, values) side by side, or one that gives all three one
after the other, a head count kept as an attribute, and the one layer that reads what they give.
Heads go whole, so the size of a head and the scale of its scores stay. Where keys and values are
shared (grouped-query attention) what goes is a shared head with all the query heads that read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edgeopt.modules.model import TorchModel
from edgeopt.pruning.channels.groups import ChannelGroup, GroupMember, Trace

__all__ = ["variants", "with_heads"]

#: What queries, keys and values are called, by family.
_QKV = (
    ("q_proj", "k_proj", "v_proj"),  # Llama, CLIP, ViT, BART, Whisper
    ("query", "key", "value"),  # BERT, RoBERTa, XLM
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("to_q", "to_k", "to_v"),  # diffusion models
    ("q", "k", "v"),  # T5, MPNet, plain blocks
    ("wq", "wk", "wv"),
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa
    ("linear_q", "linear_k", "linear_v"),  # Conformer
)
#: One layer that gives all queries, then all keys, then all values.
_FUSED = ("c_attn", "qkv", "Wqkv", "qkv_proj", "to_qkv")
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "nhead", "heads", "nheads")
_SHARED = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head")
#: Heads times head size, whatever the width of the model is.
_INNER = ("all_head_size", "inner_dim", "inner_size", "attn_dim")
#: The same, or the model's width: tried where the first do not do.
_WIDTH = ("embed_dim", "dim", "hidden_size", "d_model", "n_embd", "hidden_dim", "split_size")


def with_heads(model: TorchModel, traced: Trace, prune: bool) -> tuple[ChannelGroup, ...]:
    """The groups, those of attention's inner channels replaced by one group of heads a block.

    With ``prune`` false those groups are there and blocked.
    """
    found = list(_blocks(model.module, traced))
    inner = {name for group in found for name in group.producers}
    rest = [g for g in traced.groups if not inner.intersection(g.producers)]
    if not prune:
        found = [group.blocked("attention: heads are pruned with --heads") for group in found]
    return (*rest, *found)


def variants(group: ChannelGroup, module: nn.Module) -> Iterator[ChannelGroup]:
    """The group, and again with attributes that may be its width, where there are such."""
    yield group
    if group.kind != "heads":
        return
    owner = module.get_submodule(group.name)
    size = len(group.units)
    more = [(group.name, a, size // group.count) for a in _equal(owner, _WIDTH, size)]
    if more:
        yield replace(group, counts=(*group.counts, *more))


def _blocks(module: nn.Module, traced: Trace) -> Iterator[ChannelGroup]:
    for path, owner in module.named_modules():
        names: tuple[str, ...] = next((n for n in _QKV if _linears(owner, n)), ())
        names = names or next(((n,) for n in _FUSED if _linears(owner, (n,))), ())
        full = [f"{path}.{name}" if path else name for name in names]
        if not full or any(name not in traced.used for name in full):
            continue
        if len(full) == 1:
            yield _fused(module, path, owner, full[0], traced)
        else:
            yield _block(module, path, owner, full, traced)


def _linears(owner: nn.Module, names: Iterable[str]) -> bool:
    return all(isinstance(getattr(owner, name, None), nn.Linear) for name in names)


def _block(
    module: nn.Module, path: str, owner: nn.Module, names: list[str], traced: Trace
) -> ChannelGroup:
    layers = {name: module.get_submodule(name) for name in names}
    sizes = [int(layer.get_parameter("weight").shape[0]) for layer in layers.values()]
    queries, keys, values = sizes
    heads = _head_count(owner, module)
    size = queries // heads if heads and not queries % heads else queries
    parts = tuple(
        GroupMember(name, layer, "out", torch.arange(width), torch.arange(width))
        for (name, layer), width in zip(layers.items(), sizes, strict=True)
    )
    shared = max(1, queries // keys)
    one = ChannelGroup(path, parts, torch.arange(queries) // (size * shared), "heads")
    readers = [
        name
        for name in traced.readers.get(names[0], ())
        if getattr(module.get_submodule(name), "in_features", None) == queries
    ]
    if heads is None:
        return one.blocked("nothing says by a known name how many heads it has")
    if queries % heads or keys != values or keys % size or queries % keys:
        return one.blocked(f"{heads} heads do not divide its {queries} channels")
    if len(readers) != 1:
        others = ", ".join(readers) or "no linear layer"
        return one.blocked(f"its heads are tied to those of others: {others} read them")
    root = torch.arange(queries)
    few = torch.arange(keys)
    # A key's channel stands for those of the first query head that reads it.
    stand = few // size * size * shared + few % size
    reader = module.get_submodule(readers[0])
    parts = (
        GroupMember(names[0], layers[names[0]], "out", root, root),
        *(GroupMember(name, layers[name], "out", few, stand) for name in names[1:]),
        GroupMember(readers[0], reader, "in", root, root),
    )
    counts = [(path, a, shared) for a in _equal(owner, _HEADS, heads)]
    if shared > 1:
        counts += [(path, a, 1) for a in _equal(owner, _SHARED, heads // shared)]
    counts += [(path, a, size * shared) for a in _equal(owner, _INNER, queries)]
    return ChannelGroup(path, parts, root // (size * shared), "heads", "", tuple(counts))


def _fused(
    module: nn.Module, path: str, owner: nn.Module, name: str, traced: Trace
) -> ChannelGroup:
    layer = module.get_submodule(name)
    whole = int(layer.get_parameter("weight").shape[0])
    every, inner = torch.arange(whole), whole // 3
    heads = _head_count(owner, module)
    if heads is None or whole % 3 or inner % heads:
        one = ChannelGroup(path, (GroupMember(name, layer, "out", every, every),), every, "heads")
        told = "nothing says by a known name how many heads it has"
        return one.blocked(f"{heads} heads do not divide its {whole} channels" if heads else told)
    size = inner // heads
    part = GroupMember(name, layer, "out", every, every % inner)
    group = ChannelGroup(path, (part,), torch.arange(inner) // size, "heads")
    readers = [
        reader
        for reader in traced.readers.get(name, ())
        if getattr(module.get_submodule(reader), "in_features", None) == inner
    ]
    if len(readers) != 1:
        others = ", ".join(readers) or "no linear layer"
        return group.blocked(f"its heads are tied to those of others: {others} read them")
    root = torch.arange(inner)
    parts = (part, GroupMember(readers[0], module.get_submodule(readers[0]), "in", root, root))
    counts = [(path, a, 1) for a in _equal(owner, _HEADS, heads)]
    counts += [(path, a, size) for a in _equal(owner, _INNER, inner)]
    return replace(group, parts=parts, counts=tuple(counts))


def _equal(owner: nn.Module, names: Iterable[str], value: int) -> list[str]:
    held: Mapping[str, Any] = owner.__dict__
    return [name for name in names if type(held.get(name)) is int and held[name] == value]


def _head_count(owner: nn.Module, module: nn.Module) -> int | None:
    """Of the block itself, else of its configuration, else of the model's."""
    places = (owner, getattr(owner, "config", None), getattr(module, "config", None))
    for place in places:
        for name in _HEADS:
            value = getattr(place, name, None)
            if type(value) is int and value > 0:
                return value
    return None
