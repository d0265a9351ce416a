"""Rotary positions: what ``config.json`` says of them, in both of its forms, and GGUF's keys.

Up to transformers 4 the base is ``rope_theta`` and the scaling ``rope_scaling``; transformers 5
writes both into ``rope_parameters``, for models with two kinds of layers once for each kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.files.gguf_write import Field, f32, string, u32
from edgeopt.llm.families.config import Config

__all__ = ["Rope"]


@dataclass(frozen=True)
class Rope:
    """``kind`` is transformers' name (``default``, ``llama3``, ...), ``base`` the theta,
    ``partial`` the part of a head that turns, ``context`` what the model was made for before its
    positions were stretched, ``scaling`` the object with the kind's own numbers.
    """

    kind: str
    base: float
    partial: float
    context: int
    stretched: int
    scaling: Config

    @classmethod
    def of(cls, config: Config, kinds: tuple[str, ...], *, layers: str = "full_attention") -> Rope:
        """``kinds`` are those that the architecture can express; ``layers`` says for which kind of
        layer, where the configuration tells them apart."""
        if "rope_parameters" in config:
            scaling = config.inner("rope_parameters")
            if layers in scaling:
                scaling = scaling.inner(layers)
        elif "rope_scaling" in config:
            scaling = config.inner("rope_scaling")
        else:
            scaling = Config({}, config.file, "rope_scaling")
        key = "rope_type" if "rope_type" in scaling else "type"
        kind = scaling.text(key, "default")
        if kind not in kinds:
            raise scaling.refuse(
                key, f"what edgeopt converts for this architecture is {', '.join(kinds)}"
            )
        longest = config.integer("max_position_embeddings")
        partial = scaling.number(
            "partial_rotary_factor", config.number("partial_rotary_factor", 1.0)
        )
        if partial > 1:
            raise scaling.wrong("partial_rotary_factor", f"is {partial:g}, more than all of a head")
        original = "original_max_position_embeddings"
        return cls(
            kind=kind,
            base=scaling.number("rope_theta", config.number("rope_theta", 10000.0)),
            partial=partial,
            context=config.integer(original, scaling.integer(original, longest)),
            stretched=longest,
            scaling=scaling,
        )

    def whole(self) -> Rope:
        """Raise SourceError where only a part of each head turns."""
        if self.partial != 1:
            raise self.scaling.refuse(
                "partial_rotary_factor", "llama.cpp turns whole heads in this architecture"
            )
        return self

    @property
    def factor(self) -> float:
        """By what positions are stretched."""
        return self.scaling.number("factor", self.stretched / self.context)

    def metadata(self, architecture: str) -> dict[str, Field]:
        """``rope.freq_base`` and ``rope.scaling.*``.

        ``dynamic`` needs none: it changes nothing up to ``max_position_embeddings``. ``llama3``
        and ``longrope`` are tensors of factors.
        """
        fields = {f"{architecture}.rope.freq_base": f32(self.base)}
        key = f"{architecture}.rope.scaling"
        if self.kind in ("linear", "yarn"):
            fields[f"{key}.type"] = string(self.kind)
            fields[f"{key}.factor"] = f32(self.factor)
        if self.kind == "yarn":
            fields[f"{key}.original_context_length"] = u32(self.context)
            attention = self._yarn_attention()
            if attention != 1:
                fields[f"{key}.attn_factor"] = f32(attention)
        return fields

    def _yarn_attention(self) -> float:
        """The factor that llama.cpp puts on top of its own, 0.1 ln(factor) + 1."""
        scaling = self.scaling
        for key, only in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            if scaling.number(key, only) != only:
                raise scaling.refuse(key, f"llama.cpp takes {only:g} in this architecture")
        if not scaling.flag("truncate", True):
            raise scaling.refuse("truncate", "llama.cpp truncates in this architecture")
        own = _mscale(self.factor, 1.0)
        if "attention_factor" in scaling:
            return scaling.number("attention_factor") / own
        if "mscale" in scaling and "mscale_all_dim" in scaling:
            wanted = _mscale(self.factor, scaling.number("mscale"))
            return wanted / _mscale(self.factor, scaling.number("mscale_all_dim")) / own
        return 1.0

    def longrope_attention(self) -> float:
        """By what longrope multiplies queries and keys: sqrt(1 + ln(factor) / ln(context))."""
        usual = 1.0
        if self.factor > 1 and self.context > 1:
            usual = math.sqrt(1 + math.log(self.factor) / math.log(self.context))
        return self.scaling.number("attention_factor", usual)

    def llama3_factors(self, head: int) -> NDArray[np.float32]:
        """What each of the ``head / 2`` frequencies is divided by (``rope_freqs.weight``).

        Wavelengths below ``context / high`` stay, those above ``context / low`` are stretched by
        ``factor``, with a linear blend of the frequencies between (Llama 3.1's rule).
        """
        scaling = self.scaling
        factor = scaling.number("factor")
        low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
        if high <= low:
            raise scaling.wrong(
                "high_freq_factor", f"is {high:g}, not above low_freq_factor {low:g}"
            )
        turns = self.context / (2 * math.pi) / self.base ** (np.arange(0, head, 2) / head)
        blend = np.clip((turns - low) / (high - low), 0, 1)
        return (1 / ((1 - blend) / factor + blend)).astype(np.float32)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0
