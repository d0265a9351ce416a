"""A transformers configuration that says what a pruned model is, where one can."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from edgeopt.pruning.result import Cut

__all__ = ["fit_configuration"]

#: Numbers of a configuration that are widths of layers, by family.
_WIDTHS = (
    *("hidden_size", "d_model", "dim", "n_embd", "embedding_size"),
    *("intermediate_size", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"),
)
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_key_value_heads")

#: Configurations tried at most.
_MOST = 64


def fit_configuration(module: nn.Module, cuts: Iterable[Cut]) -> bool | None:
    """Set the numbers in the model's configuration that these cuts have changed, in place.

    True where transformers then makes a model of exactly these shapes, and the configuration says
    so; False where none of the numbers that the cuts suggest does (layers of one kind that differ),
    and it stays; None where there is no transformers model.
    """
    inner: Any = next((m for m in module.modules() if hasattr(m, "save_pretrained")), None)
    if inner is None or not hasattr(inner, "config"):
        return None
    wanted = {name: value.shape for name, value in inner.state_dict().items()}
    for changes in itertools.islice(_changes(inner.config, tuple(cuts)), _MOST):
        config = copy.deepcopy(inner.config)
        for name, number in changes.items():
            setattr(config, name, number)
        if _shapes(type(inner), config) == wanted:
            for name, number in changes.items():
                setattr(inner.config, name, number)
            return True
    return False


def _changes(config: Any, cuts: tuple[Cut, ...]) -> Iterator[Mapping[str, int]]:
    """Every choice of new numbers, those that change most first."""
    widths: dict[int, set[int]] = {}
    heads: dict[int, set[int]] = {}
    for cut in cuts:
        (heads if cut.kind == "heads" else widths).setdefault(cut.before, set()).add(cut.after)
    options: dict[str, list[int]] = {}
    for name in _WIDTHS:
        now = getattr(config, name, None)
        if type(now) is int and now in widths:
            options[name] = sorted({now, *widths[now]})
    for name in _HEADS:
        now = getattr(config, name, None)
        if type(now) is int and heads:
            # Where keys are shared, a head that went took several query heads along.
            scaled = {now * after / before for before, found in heads.items() for after in found}
            options[name] = sorted({now, *(int(n) for n in scaled if n.is_integer())})
    size = getattr(config, "head_dim", None)
    fixed = {"head_dim": size} if type(size) is int else {}
    for chosen in itertools.product(*options.values()):
        yield {**dict(zip(options, chosen, strict=True)), **fixed}


def _shapes(kind: Any, config: Any) -> dict[str, torch.Size] | None:
    with torch.device("meta"):
        try:
            made = kind(config)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError):
            return None
    return {name: value.shape for name, value in made.state_dict().items()}
