"""A smaller configuration of a transformers model: fewer heads, narrower states, fewer blocks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

__all__ = ["Sizes", "resized", "sizes_of", "smaller"]

#: What families call the width inside feed-forward blocks.
_INNER = ("intermediate_size", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "d_ff", "n_inner")

#: The number of heads that keys and values have, where it may be smaller.
_GROUPS = ("num_key_value_heads", "num_kv_heads")

#: Widths that follow the hidden states' where they equal it.
_FOLLOWERS = ("word_embed_proj_dim", "embedding_size")


@dataclass(frozen=True)
class Sizes:
    """What a transformer's configuration says of its size.

    ``groups`` is the number of key and value heads (``heads``, where each has its own); ``head``
    the width of one head; ``inner`` that within feed-forward blocks, None where nothing says it.
    """

    blocks: int
    hidden: int
    heads: int
    groups: int
    head: int
    inner: int | None


def sizes_of(config: Any) -> Sizes | None:
    """The sizes; None where a configuration has no one number for hidden states, heads or blocks
    (networks in stages)."""
    hidden, heads, blocks = (
        _number(config, (name,))
        for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    if hidden is None or heads is None or blocks is None:
        return None
    head = _number(config, ("head_dim", "d_kv")) or hidden // heads
    inner = _number(config, _INNER)
    if inner is None and hasattr(config, "n_inner"):
        inner = 4 * hidden  # GPT-2's, where the configuration leaves it out
    return Sizes(blocks, hidden, heads, _number(config, _GROUPS) or heads, head, inner)


def smaller(sizes: Sizes, width: float | None, depth: float | None, *, keep_hidden: bool) -> Sizes:
    """The sizes times ``width`` and ``depth``, rounded to whole heads and blocks, at least one.

    A head's own width stays, and hidden states stay as wide as their heads together where they
    were. ``keep_hidden``: only feed-forward blocks get narrower.
    """
    blocks = sizes.blocks if depth is None else max(1, round(sizes.blocks * depth))
    if width is None:
        return Sizes(blocks, sizes.hidden, sizes.heads, sizes.groups, sizes.head, sizes.inner)
    inner = None if sizes.inner is None else max(1, round(sizes.inner * width))
    if keep_hidden:
        return Sizes(blocks, sizes.hidden, sizes.heads, sizes.groups, sizes.head, inner)
    groups, share = _heads(sizes, width)
    heads = groups * share
    hidden = heads * sizes.head
    if sizes.hidden != sizes.heads * sizes.head:
        hidden = max(8, round(sizes.hidden * width / 8) * 8)
    return Sizes(blocks, hidden, heads, groups, sizes.head, inner)


def _heads(sizes: Sizes, width: float) -> tuple[int, int]:
    """(groups, heads in each) that come nearest to the width; more groups where two do."""
    share = sizes.heads // sizes.groups
    found = ((g, s) for g in range(sizes.groups, 0, -1) for s in range(share, 0, -1))
    return min(found, key=lambda pair: abs(pair[0] * pair[1] - sizes.heads * width))


def resized(config: Any, sizes: Sizes, kept: tuple[int, ...]) -> Any:
    """A copy of the configuration with these sizes; of lists with one value a block, the values
    of the blocks in ``kept``."""
    before = sizes_of(config)
    assert before is not None
    new = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == before.blocks != sizes.blocks:
            setattr(new, name, [value[i] for i in kept])
    changes: dict[str, int | None] = {
        "hidden_size": sizes.hidden,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.blocks,
        **{n: sizes.hidden for n in _FOLLOWERS if getattr(config, n, None) == before.hidden},
        (_first(config, _INNER) or "n_inner"): sizes.inner,
    }
    groups = _first(config, _GROUPS)
    if groups is not None:
        changes[groups] = sizes.groups
    for name, number in changes.items():
        if number is not None:
            setattr(new, name, number)
    return new


def _number(config: Any, names: tuple[str, ...]) -> int | None:
    """The number above 0 that the first of ``names`` with one has."""
    name = _first(config, names)
    return None if name is None else int(getattr(config, name))


def _first(config: Any, names: tuple[str, ...]) -> str | None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return name
    return None
