"""The mixes as tables: which tensors a preset stores otherwise than in its base type.

They are llama.cpp's own (``src/llama-quant.cpp`` of the release that llama-cpp-python 0.3.36
carries), so that a preset means here what its name means everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

__all__ = [
    "COARSER_BLOCKS",
    "EIGHT_EXPERTS_FINER_OUTPUT",
    "FALCON",
    "GROUPED_70B",
    "KEPT",
    "MIXES",
    "PRESETS",
    "ROLES",
    "Preset",
    "Role",
    "TensorPlace",
    "TypeRule",
]


@dataclass(frozen=True)
class Preset:
    """``base`` is the type of every tensor without a rule; ``number`` stands in
    ``general.file_type`` (llama.cpp's ``LLAMA_FTYPE``)."""

    name: str
    base: str
    number: int


_PRESETS = (
    Preset("F32", "F32", 0),
    Preset("F16", "F16", 1),
    Preset("BF16", "BF16", 32),
    Preset("Q8_0", "Q8_0", 7),
    Preset("Q4_0", "Q4_0", 2),
    Preset("Q4_1", "Q4_1", 3),
    Preset("Q5_0", "Q5_0", 8),
    Preset("Q5_1", "Q5_1", 9),
    Preset("Q2_K", "Q2_K", 10),
    Preset("Q3_K_S", "Q3_K", 11),
    Preset("Q3_K_M", "Q3_K", 12),
    Preset("Q3_K_L", "Q3_K", 13),
    Preset("Q4_K_S", "Q4_K", 14),
    Preset("Q4_K_M", "Q4_K", 15),
    Preset("Q5_K_S", "Q5_K", 16),
    Preset("Q5_K_M", "Q5_K", 17),
    Preset("Q6_K", "Q6_K", 18),
)
_BY_NAME = {preset.name: preset for preset in _PRESETS}

#: What ``--type`` takes -> the preset. ``Q4_K`` and its like are short for the middle size.
PRESETS: Mapping[str, Preset] = {
    **_BY_NAME,
    **{name: _BY_NAME[f"{name}_M"] for name in ("Q3_K", "Q4_K", "Q5_K")},
}


class Role(Enum):
    """What a matrix is there for, as far as a mix tells them apart."""

    OUTPUT = "output table"
    EMBEDDING = "token table"
    VALUE = "attention values"
    KEY = "attention keys"
    ATTENTION_OUTPUT = "attention output"
    DOWN = "feed-forward down"
    OTHER = "matrix"


#: Part of the name -> role; the first that fits. A fused q, k, v counts as the values.
ROLES: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", Role.VALUE),
    ("attn_kv_b.weight", Role.VALUE),
    ("attn_v.weight", Role.VALUE),
    ("attn_k.weight", Role.KEY),
    ("attn_q.weight", Role.OTHER),
    ("attn_output.weight", Role.ATTENTION_OUTPUT),
    ("ffn_up", Role.OTHER),
    ("ffn_gate", Role.OTHER),
    ("ffn_down", Role.DOWN),
)

#: Part of the name -> why such a tensor is never quantized, though it is a matrix.
KEPT: tuple[tuple[str, str], ...] = (
    ("_norm.weight", "a norm: few values that scale whole columns"),
    ("ffn_gate_inp.weight", "chooses the experts: small, and an error sends tokens astray"),
    ("ffn_gate_tid2eid.weight", "a table of whole numbers"),
    ("altup", "a few values"),
    ("laurel", "a few values"),
    ("per_layer_model_proj", "small next to the rest"),
    ("ssm_conv1d", "a small convolution"),
    ("shortconv.conv.weight", "a small convolution"),
    ("indexer.k_proj.weight", "a small projection"),
    ("indexer.q_proj.weight", "a small projection"),
    ("time_mix_first.weight", "a few values"),
    *((f"time_mix_{part}.weight", "a small matrix") for part in
      ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2",
       "decay_w1", "decay_w2", "lerp_fused")),
    ("attn_rel_b.weight", "a small table of relative positions"),
    (".position_embd", "a table of positions"),
    ("sam.pos_embd", "a table of positions"),
    ("sam.neck.", "part of the picture encoder"),
    ("sam.net_", "part of the picture encoder"),
    (".rel_pos", "a table of positions"),
    (".patch_embd", "part of the picture encoder"),
    (".patch_merger", "part of the picture encoder"),
    ("a.rvq.codebook", "a codebook of sounds"),
    ("mm.a.code_embd", "a codebook of sounds"),
)  # fmt: skip

#: A type whose blocks of 256 a row does not fill -> the type with blocks of 32 in its place.
COARSER_BLOCKS: Mapping[str, str] = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor stands: the ``layer``-th of ``layers`` of its role, ``groups`` query heads
    to each key and value head, and whether an importance matrix is at hand."""

    layer: int
    layers: int
    groups: int
    calibrated: bool


def _always(_: TensorPlace) -> bool:
    return True


def _outer_and_every_third(place: TensorPlace) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = place.layers // 8
    return (
        place.layer < eighth
        or place.layer >= 7 * place.layers // 8
        # C's remainder of a negative number is not Python's, but `layer < eighth` is behind us.
        or (place.layer - eighth) % 3 == 2
    )


def _first(count: int) -> Callable[[TensorPlace], bool]:
    return lambda place: place.layer < count


def _first_part(parts: int) -> Callable[[TensorPlace], bool]:
    return lambda place: place.layer < place.layers // parts


def _grouped(place: TensorPlace) -> bool:
    return place.groups >= 4


def _first_eighth_calibrated(place: TensorPlace) -> bool:
    return place.calibrated and place.layer < place.layers // 8


@dataclass(frozen=True)
class TypeRule:
    """``type`` in place of the base type, where ``holds``; ``where`` says so in words."""

    type: str
    holds: Callable[[TensorPlace], bool] = _always
    where: str = "in every layer"


_OUTER = "in the first and last eighth of the layers and every third between"
_EARLY = "in the first eighth of the layers"
_GROUPED = "as four or more query heads share each, which makes them small"
_REST = "in the other layers"


def _outer(finer: str) -> tuple[TypeRule, ...]:
    return (TypeRule(finer, _outer_and_every_third, _OUTER),)


#: preset -> role -> rules; the first that holds gives the type, none the base type.
MIXES: Mapping[str, Mapping[Role, tuple[TypeRule, ...]]] = {
    "Q2_K": {
        Role.VALUE: (TypeRule("Q4_K", _grouped, _GROUPED), TypeRule("Q3_K")),
        Role.DOWN: (TypeRule("Q3_K"),),
        Role.ATTENTION_OUTPUT: (TypeRule("Q3_K"),),
    },
    "Q3_K_M": {
        Role.VALUE: (
            TypeRule("Q5_K", _first(2), "in the first 2 layers"),
            TypeRule("Q4_K", where=_REST),
        ),
        Role.DOWN: (
            TypeRule("Q5_K", _first_part(16), "in the first sixteenth of the layers"),
            TypeRule("Q4_K", where=_REST),
        ),
        Role.ATTENTION_OUTPUT: (TypeRule("Q4_K"),),
    },
    "Q3_K_L": {
        Role.VALUE: (TypeRule("Q5_K"),),
        Role.DOWN: (TypeRule("Q5_K"),),
        Role.ATTENTION_OUTPUT: (TypeRule("Q5_K"),),
    },
    "Q4_K_S": {
        Role.VALUE: (TypeRule("Q5_K", _first(4), "in the first 4 layers"),),
        Role.DOWN: (TypeRule("Q5_K", _first_part(8), _EARLY),),
    },
    "Q4_K_M": {Role.VALUE: _outer("Q6_K"), Role.DOWN: _outer("Q6_K")},
    "Q5_K_M": {Role.VALUE: _outer("Q6_K"), Role.DOWN: _outer("Q6_K")},
    "Q4_0": {
        Role.DOWN: (TypeRule("Q4_1", _first_eighth_calibrated, f"{_EARLY}, with importances"),),
    },
    "Q5_0": {
        Role.DOWN: (TypeRule("Q5_1", _first_eighth_calibrated, f"{_EARLY}, with importances"),),
    },
}

#: What Falcon has otherwise.
FALCON: Mapping[str, Mapping[Role, tuple[TypeRule, ...]]] = {
    "Q2_K": {Role.ATTENTION_OUTPUT: ()},
    "Q3_K_M": {
        Role.DOWN: (
            TypeRule("Q5_K", _first_part(16), "in the first sixteenth of the layers"),
            *_outer("Q4_K"),
        ),
        Role.ATTENTION_OUTPUT: (),
    },
    "Q3_K_L": {Role.DOWN: (TypeRule("Q4_K"),), Role.ATTENTION_OUTPUT: (TypeRule("Q4_K"),)},
    "Q4_K_S": {Role.DOWN: ()},
    "Q4_K_M": {
        Role.DOWN: (
            TypeRule("Q6_K", _first_part(16), "in the first sixteenth of the layers"),
            *_outer("Q5_K"),
        ),
    },
}

#: With 8 experts the presets that store the attention output as Q5_K; the others keep the base.
EIGHT_EXPERTS_FINER_OUTPUT = frozenset({"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"})

#: Architecture -> the layers of its 70B model, whose value projections are small (8 query heads
#: share each) and so are stored as Q5_K where they would be Q3_K or Q4_K.
GROUPED_70B: Mapping[str, int] = {
    "llama": 80,
    "llama-embed": 80,
    "qwen2": 80,
    "deci": 80,
    "olmo": 80,
    "jais2": 68,
}
