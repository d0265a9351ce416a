"""Which of ggml's types every tensor of a language model is stored as, and why.

A preset (``Q4_K_M``) is a mix: most matrices in its base type, those that matter most finer. The
mixes are tables in :mod:`edgeopt.llm.mix_rules`; here they are carried out.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from edgeopt.core import Weight
from edgeopt.core.ggml import TYPES_BY_NAME
from edgeopt.errors import SourceError, UsageError
from edgeopt.llm.mix_rules import (
    COARSER_BLOCKS,
    EIGHT_EXPERTS_FINER_OUTPUT,
    FALCON,
    GROUPED_70B,
    KEPT,
    MIXES,
    PRESETS,
    ROLES,
    Preset,
    Role,
    TensorPlace,
)
from edgeopt.llm.model import LanguageModel

__all__ = ["Assignment", "assign", "file_type", "kept_reason"]

#: Types that values can be stored as on request.
_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
)  # fmt: skip
_FLOATS = ("F32", "F16", "BF16")
_WHOLE = {"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"}
_LAYER = re.compile(r"blk\.(\d+)")
_TABLES = {"position_embd.weight": "a table of positions", "token_types.weight": "a small table"}


@dataclass(frozen=True)
class Assignment:
    """``tensor`` is stored as ggml's ``type``, because of ``reason``."""

    tensor: str
    type: str
    reason: str


def file_type(preset: str) -> int:
    """The number of a preset in ``general.file_type``. UsageError where there is no such preset."""
    return _preset(preset).number


def assign(
    preset: str,
    model: LanguageModel,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    importance: Container[str] | None = None,
    stored: Mapping[str, str] | None = None,
) -> tuple[Assignment, ...]:
    """The type of every tensor, in the model's order: what llama.cpp's own quantizer would choose.

    Args:
        preset: a type (``Q8_0``) or a mix (``Q4_K_M``); case does not matter.
        model: its tensors' names and shapes, and its head, layer and expert counts.
        overrides: pairs of a regular expression, searched in tensor names, and a type. The first
            that matches wins, and the mix counts on as if the tensor were not there.
        importance: names that an importance matrix covers; None where there is no matrix. That
            there is one changes the mix of Q4_0 and Q5_0.
        stored: for a model that comes from GGUF: each tensor's type there. What is never
            quantized keeps it; without, it becomes F32.

    Raises:
        UsageError: no such preset or type; a pattern that is no regular expression, matches
            nothing, or comes too late to matter; a type whose blocks a tensor's rows do not fill.
        SourceError: a mixture of experts has a tensor whose layer is not in its name.
    """
    chosen = _preset(preset)
    wanted = _overridden(model, overrides)
    mix = _Mix(chosen, model, importance is not None)
    found = {}
    for weight in sorted(model.tensors, key=lambda weight: _visited(weight.name)):
        kept = kept_reason(weight)
        if kept is not None:
            kind = (stored or {}).get(weight.name, _WHOLE.get(weight.dtype, "F32"))
            found[weight.name] = Assignment(weight.name, kind, f"kept in full: {kept}")
        elif weight.name in wanted:
            found[weight.name] = wanted[weight.name]
        else:
            found[weight.name] = mix.next(weight)
    return tuple(found[weight.name] for weight in model.tensors)


def kept_reason(weight: Weight) -> str | None:
    """Why a tensor is never quantized or cast, whatever the preset; None where it may be."""
    name = weight.name
    # As ggml counts dimensions: a matrix of one row is a vector.
    if _rank(weight.shape) < 2:
        return "a vector of a few values"
    if not name.endswith("weight"):
        return "no matrix of weights"
    if name in _TABLES:
        return _TABLES[name]
    return next((reason for part, reason in KEPT if part in name), None)


def _rank(shape: tuple[int, ...]) -> int:
    leading = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return len(shape) - leading


def _preset(name: str) -> Preset:
    found = PRESETS.get(name.upper())
    if found is None:
        raise UsageError(
            f"{name!r} is no type that edgeopt writes; choose from {', '.join(PRESETS)}"
        )
    return found


def _visited(name: str) -> tuple[int, str]:
    """llama.cpp's order, in which the layers of a role are counted."""
    match = _LAYER.match(name)
    return (int(match[1]) if match else -1, name)


# ---------------------------------------------------------------------------------------------
# overrides


def _overridden(
    model: LanguageModel, overrides: Sequence[tuple[str, str]]
) -> dict[str, Assignment]:
    """What the user asked for, tensor by tensor; every pattern must have its effect."""
    found: dict[str, Assignment] = {}
    for pattern, name in overrides:
        kind = name.upper()
        if kind not in _TYPES:
            raise UsageError(
                f"{name!r}, asked for tensors like {pattern!r}, is no type that edgeopt writes; "
                f"choose from {', '.join(_TYPES)}"
            )
        try:
            searched = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is no regular expression: {error}") from error
        matching = [weight for weight in model.tensors if searched.search(weight.name)]
        free = [weight for weight in matching if kept_reason(weight) is None]
        new = [weight for weight in free if weight.name not in found]
        if not new:
            raise UsageError(_no_effect(pattern, matching, free))
        for weight in new:
            columns, block = weight.shape[-1], TYPES_BY_NAME[kind].block
            if columns % block:
                raise UsageError(
                    f"{weight.name!r}, which {pattern!r} matches, cannot be {kind}: its "
                    f"{columns} columns do not fill blocks of {block}; {_instead(kind, columns)}"
                )
            found[weight.name] = Assignment(weight.name, kind, f"asked for: {pattern}={kind}")
    return found


def _instead(kind: str, columns: int) -> str:
    finer = COARSER_BLOCKS.get(kind)
    return f"ask for {finer}" if finer and columns % 32 == 0 else "ask for F16"


def _no_effect(pattern: str, matching: Sequence[Weight], free: Sequence[Weight]) -> str:
    if not matching:
        return f"{pattern!r} matches no tensor of the model; --plan lists their names"
    if not free:
        return (
            f"{pattern!r} matches only tensors that are never quantized "
            f"({matching[0].name}: {kept_reason(matching[0])})"
        )
    return f"{pattern!r} matches only tensors that an earlier pattern has taken; put it first"


# ---------------------------------------------------------------------------------------------
# mixes


class _Mix:
    """A preset at work on one model, from tensor to tensor."""

    def __init__(self, preset: Preset, model: LanguageModel, calibrated: bool) -> None:
        self.preset = preset
        self.calibrated = calibrated
        self.falcon = model.architecture == "falcon"
        self.experts = model.number("expert_count")
        self.blocks = model.number("block_count")
        heads = _first_number(model, "attention.head_count", 0)
        shared = _first_number(model, "attention.head_count_kv", heads)
        self.groups = heads // shared if shared else 0
        self.is_70b = GROUPED_70B.get(model.architecture) == self.blocks and not (
            model.architecture.startswith("llama") and heads == shared
        )
        names = [weight.name for weight in model.tensors]
        self.tied = "output.weight" not in names
        self.values = sum(_role(name) is Role.VALUE for name in names)
        self.seen = {Role.VALUE: 0, Role.DOWN: 0}
        self.rules = {
            **MIXES.get(preset.name, {}),
            **(FALCON.get(preset.name, {}) if self.falcon else {}),
        }

    def next(self, weight: Weight) -> Assignment:
        """The next tensor's type, in llama.cpp's order."""
        if self.preset.base in _FLOATS:
            return Assignment(weight.name, self.preset.base, f"{self.preset.name} was asked for")
        kind, reason = self._choice(weight, _role(weight.name))
        fitting = _fitting(kind, weight.shape[-1])
        if fitting != kind:
            columns, block = weight.shape[-1], TYPES_BY_NAME[kind].block
            also = f" nor of {TYPES_BY_NAME[COARSER_BLOCKS.get(kind, kind)].block}"
            neither = fitting == "F16" and kind in COARSER_BLOCKS
            reason = (
                f"{columns} columns do not fill blocks of {block}{also if neither else ''}, "
                f"as {kind} needs them"
            )
        return Assignment(weight.name, fitting, reason)

    def _choice(self, weight: Weight, role: Role) -> tuple[str, str]:
        """Type and reason before anybody looks whether the columns fill its blocks."""
        if role is Role.OUTPUT or (role is Role.EMBEDDING and self.tied):
            return self._output(weight, role)
        place = self._place(weight.name, role)
        rule = next((rule for rule in self.rules.get(role, ()) if rule.holds(place)), None)
        base = self.preset.base
        kind, reason = base, f"{base} is the base of {self.preset.name}"
        if rule is not None:
            kind, reason = rule.type, f"{role.value}: kept finer {rule.where}"
        if role is Role.VALUE and self.is_70b and kind in ("Q3_K", "Q4_K"):
            kind, reason = "Q5_K", f"{role.value}: kept finer, in a 70B model they are small"
        if self.experts == 8:
            return self._eight_experts(role, kind, reason)
        return kind, reason

    def _output(self, weight: Weight, role: Role) -> tuple[str, str]:
        base, columns = self.preset.base, weight.shape[-1]
        what = role.value if role is Role.OUTPUT else "token table that is the output table too"
        reason = f"{what}: kept finer because every token passes through it"
        coarse = self.falcon or columns % TYPES_BY_NAME[base].block
        return "Q8_0" if coarse or base == "Q8_0" else "Q6_K", reason

    def _eight_experts(self, role: Role, kind: str, reason: str) -> tuple[str, str]:
        """The experts hold most of the bytes, so the attention they share may be finer."""
        shared = "kept finer, it is small next to 8 experts"
        if role in (Role.VALUE, Role.KEY):
            return "Q8_0", f"{role.value}: {shared}"
        if role is Role.ATTENTION_OUTPUT and not self.falcon:
            if self.preset.name in EIGHT_EXPERTS_FINER_OUTPUT:
                return "Q5_K", f"{role.value}: {shared}"
            return self.preset.base, f"{self.preset.base} is the base of {self.preset.name}"
        return kind, reason

    def _place(self, name: str, role: Role) -> TensorPlace:
        layer, layers = 0, self.blocks
        if role in self.seen:
            layer = self.seen[role]
            self.seen[role] += 1
        if role is Role.VALUE:
            layers = self.values
        elif role is Role.DOWN and self.experts > 1:
            match = _LAYER.match(name)
            if match is None or int(match[1]) >= layers:
                raise SourceError(
                    f"tensor {name!r} belongs to none of the model's {layers} layers, "
                    "by which the mix of a model with experts goes"
                )
            layer = int(match[1])
        return TensorPlace(layer, layers, self.groups, self.calibrated)


def _fitting(kind: str, columns: int) -> str:
    """The type, or the one in its place where the columns do not fill its blocks."""
    if columns % TYPES_BY_NAME[kind].block == 0:
        return kind
    other = COARSER_BLOCKS.get(kind, kind)
    return other if columns % TYPES_BY_NAME[other].block == 0 else "F16"


def _role(name: str) -> Role:
    if name == "output.weight":
        return Role.OUTPUT
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return Role.EMBEDDING
    return next((role for part, role in ROLES if part in name), Role.OTHER)


def _first_number(model: LanguageModel, key: str, default: int) -> int:
    """A number of the metadata, or the first layer's where every layer has its own."""
    field = model.metadata.get(f"{model.architecture}.{key}")
    if field is not None and field.type == "array":
        return int(field.value[0]) if len(field.value) else default
    return model.number(key, default)
