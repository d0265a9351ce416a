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

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


@dataclass(frozen=True)
class Rope:
    """``kind`` is transformers' name (``default``, ``llama3``, ...), ``base`` the theta,
    ``scaling`` the object with the kind's own numbers, ``partial`` the part of a head that turns.
    """

    kind: str
    base: float
    partial: float
    scaling: Config

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        base: float = 10000.0,
        kinds: tuple[str, ...] = _KINDS,
        layers: str = "full_attention",
    ) -> Rope:
        """``kinds`` are those that the architecture can express; ``layers`` says for which kind of
        layer, where the configuration tells them apart; ``base`` is the class's default."""
        if "rope_parameters" in config:
            scaling = config.inner("rope_parameters")
            if layers in scaling:
                scaling = scaling.inner(layers)
            theta = scaling.number("rope_theta", config.number("rope_theta", base))
        else:
            missing = Config({}, config.file, "rope_scaling")
            scaling = config.inner("rope_scaling") if "rope_scaling" in config else missing
            theta = config.number("rope_theta", base)
        key = "rope_type" if "rope_type" in scaling else "type"
        kind = scaling.text(key, "default")
        kind = {"su": "longrope"}.get(kind, kind)
        if kind not in kinds:
            raise scaling.refuse(
                key, f"what edgeopt converts for this architecture is {', '.join(kinds)}"
            )
        partial = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1))
        return cls(kind, theta, partial, scaling)

    def whole(self) -> Rope:
        """Raise SourceError where only a part of each head turns."""
        if self.partial != 1:
            raise self.scaling.refuse(
                "partial_rotary_factor", "llama.cpp turns whole heads in this architecture"
            )
        return self

    def metadata(self, architecture: str) -> dict[str, Field]:
        """``rope.freq_base`` and ``rope.scaling.*``.

        ``dynamic`` needs none: it changes nothing up to ``max_position_embeddings``. ``llama3``
        and ``longrope`` are tensors of factors.
        """
        fields = {f"{architecture}.rope.freq_base": f32(self.base)}
        scaling, key = self.scaling, f"{architecture}.rope.scaling"
        if self.kind == "linear":
            fields[f"{key}.type"] = string("linear")
            fields[f"{key}.factor"] = f32(scaling.number("factor"))
        if self.kind == "yarn":
            fields[f"{key}.type"] = string("yarn")
            fields[f"{key}.factor"] = f32(scaling.number("factor"))
            original = scaling.integer("original_max_position_embeddings")
            fields[f"{key}.original_context_length"] = u32(original)
            fields[f"{key}.attn_factor"] = f32(self._yarn_attention())
        return fields

    def _yarn_attention(self) -> float:
        """The factor that llama.cpp puts on top of its own, 0.1 ln(factor) + 1."""
        scaling = self.scaling
        for key, only in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            if scaling.number(key, only) != only:
                raise scaling.refuse(key, f"llama.cpp takes {only:g} in this architecture")
        if not scaling.flag("truncate", True):
            raise scaling.refuse("truncate", "llama.cpp truncates in this architecture")
        factor = scaling.number("factor")
        own = _mscale(factor, 1.0)
        if "attention_factor" in scaling:
            return scaling.number("attention_factor") / own
        if "mscale" in scaling and "mscale_all_dim" in scaling:
            wanted = _mscale(factor, scaling.number("mscale"))
            return wanted / _mscale(factor, scaling.number("mscale_all_dim")) / own
        return 1.0

    def llama3_factors(self, head: int) -> NDArray[np.float32]:
        """What each of the ``head / 2`` frequencies is divided by (``rope_freqs.weight``).

        Wavelengths below ``original / high`` stay, those above ``original / low`` are stretched
        by ``factor``, with a linear blend of the frequencies between (Llama 3.1's rule).
        """
        scaling = self.scaling
        factor = scaling.number("factor")
        low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
        original = scaling.integer("original_max_position_embeddings")
        if high <= low:
            raise scaling.wrong(
                "high_freq_factor", f"is {high:g}, not above low_freq_factor {low:g}"
            )
        turns = original / (2 * math.pi) / self.base ** (np.arange(0, head, 2) / head)
        blend = np.clip((turns - low) / (high - low), 0, 1)
        return (1 / ((1 - blend) / factor + blend)).astype(np.float32)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0
