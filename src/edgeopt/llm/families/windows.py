"""Sliding windows: which layers see only so many tokens back, and whether llama.cpp knows."""

from __future__ import annotations

from edgeopt.llm.families.config import Config

__all__ = ["sliding_layers", "unseen_window"]

_KINDS = ("full_attention", "sliding_attention")


def sliding_layers(config: Config, blocks: int) -> list[bool] | None:
    """Of every layer whether its attention slides; None where the configuration lists no kinds."""
    if "layer_types" not in config:
        return None
    kinds = config.items("layer_types")
    if len(kinds) != blocks:
        raise config.wrong("layer_types", f"has {len(kinds)} values for {blocks} layers")
    unknown = next((kind for kind in kinds if kind not in _KINDS), None)
    if unknown is not None:
        raise config.wrong("layer_types", f"has {unknown!r:.60}, known are {' and '.join(_KINDS)}")
    return [kind == "sliding_attention" for kind in kinds]


def unseen_window(config: Config, context: int) -> tuple[str, ...]:
    """A note where the model has a window that this architecture of llama.cpp does not apply."""
    if "sliding_window" not in config:
        return ()
    window = config.integer("sliding_window")
    if window >= context:
        return ()
    return (
        f"llama.cpp attends to everything where this model sees {window} tokens back: past "
        f"{window} tokens (of {context}) answers differ from the source's",
    )
