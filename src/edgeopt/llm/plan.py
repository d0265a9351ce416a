"""The plan for a GGUF file: every tensor's type, and the exact file, with no weight read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.core import Decision, Ggml, Plan, Source
from edgeopt.core.ggml import PLAIN_TYPES
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.gguf_write import Field, GgufLayout, string, u32
from edgeopt.files.imatrix import Imatrix
from edgeopt.files.seal import BLANK, SEAL
from edgeopt.llm.mix import assign, file_type
from edgeopt.llm.model import LanguageModel
from edgeopt.numerics.ggml import decodes, encodes
from edgeopt.version import VERSION

__all__ = [
    "PLAN_SHA256",
    "SOURCE_SHA256",
    "GgufAsked",
    "described_sha256",
    "layout_of",
    "make_gguf_plan",
    "replayed",
]

#: Version of the block formats, as ggml counts them.
_QUANTIZATION_VERSION = 2

#: Stored so, a tensor has lost nothing, or too little to matter beside what comes after.
_FINE = frozenset({*PLAIN_TYPES.values(), "Q8_0"})


@dataclass(frozen=True)
class GgufAsked:
    """What the user asked of a GGUF file.

    ``type`` is a preset (``Q4_K_M``) or a plain type; ``tensor_types`` are (regex, type) pairs of
    which the first that matches a tensor's name wins.
    """

    type: str
    tensor_types: tuple[tuple[str, str], ...] = ()
    importance: Imatrix | None = None
    allow_requantize: bool = False

    def options(self) -> dict[str, Any]:
        return {
            "to": "gguf",
            "type": self.type,
            "tensor_types": [list(pair) for pair in self.tensor_types],
            "allow_requantize": self.allow_requantize,
        }


def described_sha256(source: Source) -> str:
    """A digest of what the source says of itself: every tensor's name, shape, type and bytes.

    A streaming plan is made without reading weights, so their digest cannot be part of it.
    """
    body = [[w.name, list(w.shape), w.dtype, w.nbytes] for w in source.weights]
    return hashlib.sha256(json.dumps([source.nbytes, body]).encode()).hexdigest()


def make_gguf_plan(source: Source, model: LanguageModel, asked: GgufAsked) -> Plan:
    """Decide every tensor's type as llama.cpp's quantizer would, overrides first.

    Raises UsageError for what cannot be honoured, SourceError where low-bit weights would be
    quantized again without ``allow_requantize``.
    """
    importance = asked.importance
    assigned = assign(
        asked.type,
        model,
        overrides=asked.tensor_types,
        importance=None if importance is None else importance.values.keys(),
        stored=_stored(source),
    )
    weights = {weight.name: weight for weight in model.tensors}
    decisions = []
    for each in assigned:
        weight = weights[each.tensor]
        stored = Ggml(each.type)
        if refused := stored.accepts(weight.shape):
            raise UsageError(f"tensor {weight.name!r}: {refused}; choose another type for it")
        decisions.append(
            Decision(
                tensor=weight.name,
                op="tensor",
                method=_method(weight.dtype, each.type),
                form="gguf",
                scheme=stored,
                reason=each.reason,
                nbytes=stored.nbytes(weight.shape),
                shape=weight.shape,
            )
        )
    plan = Plan(
        source_sha256=described_sha256(source),
        options=asked.options(),
        decisions=tuple(decisions),
        calibration={} if importance is None else _calibration(importance, model),
    )
    _require_encodable(source, model, plan, asked.allow_requantize)
    return plan


def replayed(source: Source, model: LanguageModel, plan: Plan, importance: Imatrix | None) -> Plan:
    """``plan`` itself, once it is known to fit: it may come from a file that somebody edited.

    Raises UsageError where it is for another source, format or importance matrix.
    """
    if plan.options.get("to") != "gguf":
        raise UsageError("the plan is not one for GGUF; make it with --to gguf --plan")
    if plan.source_sha256 != described_sha256(source):
        raise UsageError(f"the plan was made for another source than {source.path}; make it anew")
    weights = {weight.name: weight for weight in model.tensors}
    planned = {decision.tensor: decision for decision in plan.decisions}
    if set(weights) != set(planned) or len(planned) != len(plan.decisions):
        odd = sorted(set(weights) ^ set(planned))[:1] or [plan.decisions[0].tensor]
        raise UsageError(f"tensor {odd[0]!r} is not once in plan and source; make the plan anew")
    for name, decision in planned.items():
        stored = decision.scheme
        if not isinstance(stored, Ggml):
            raise UsageError(f"the plan for tensor {name!r} names no ggml type; make it anew")
        shape, method = weights[name].shape, _method(weights[name].dtype, stored.type)
        wrong = stored.accepts(shape)
        if not wrong and decision.shape != shape:
            wrong = f"shape {list(decision.shape)}, the source has {list(shape)}"
        if not wrong and stored.nbytes(shape) != decision.nbytes:
            wrong = f"{decision.nbytes} bytes, {stored.type} takes {stored.nbytes(shape)}"
        if not wrong and decision.method != method:
            wrong = f"method {decision.method!r}, {stored.type} takes {method!r} here"
        if wrong:
            raise UsageError(f"the plan for tensor {name!r}: {wrong}; make it anew")
    file_type(str(plan.options.get("type")))
    found = {} if importance is None else _calibration(importance, model)
    if dict(plan.calibration) != found:
        raise UsageError(
            "the plan was made with another importance matrix; give the same --imatrix"
        )
    _require_encodable(source, model, plan, bool(plan.options.get("allow_requantize")))
    return plan


def _method(dtype: str, kind: str) -> str:
    """How a tensor of ``dtype`` becomes ggml's type ``kind``: bytes as they are, a cast, blocks."""
    if dtype == PLAIN_TYPES.get(kind, kind):
        return "copy"
    return "cast" if kind in PLAIN_TYPES else "ggml"


def _stored(source: Source) -> dict[str, str]:
    """The types of a GGUF source's tensors: what is never quantized keeps its own."""
    if source.kind != "gguf":
        return {}
    names = {dtype: name for name, dtype in PLAIN_TYPES.items()}
    return {weight.name: names.get(weight.dtype, weight.dtype) for weight in source.weights}


def _calibration(importance: Imatrix, model: LanguageModel) -> dict[str, Any]:
    fitted = importance.fitted(model.tensors)
    return {
        "imatrix": importance.sha256(),
        "tensors": len(fitted.values),
        "without": len(fitted.without),
    }


def _require_encodable(
    source: Source, model: LanguageModel, plan: Plan, allow_requantize: bool
) -> None:
    stored = {weight.name: weight.dtype for weight in model.tensors}
    known = {*PLAIN_TYPES.values(), *decodes()}
    for decision in plan.decisions:
        scheme, dtype = decision.scheme, stored[decision.tensor]
        assert isinstance(scheme, Ggml)
        if decision.method == "copy":
            continue
        if scheme.type not in encodes():
            raise UsageError(
                f"tensor {decision.tensor!r}: {scheme.type} is not one of the types that edgeopt "
                f"writes: {', '.join(encodes())}"
            )
        if dtype not in known:
            raise SourceError(f"tensor {decision.tensor!r}: edgeopt does not decode {dtype}")
        if source.kind == "gguf" and not allow_requantize and dtype not in _FINE:
            raise SourceError(
                f"{source.path}: tensor {decision.tensor!r} is {dtype} already, and quantizing it "
                "again adds a second error to the first; start from the float model, or say "
                "--allow-requantize"
            )


# ---------------------------------------------------------------------------------------------
# the file


#: Keys of ours: of the tool, and digests of the file, its source and its plan.
_OURS = "edgeopt."
SOURCE_SHA256, PLAN_SHA256 = f"{_OURS}source_sha256", f"{_OURS}plan_sha256"


def layout_of(model: LanguageModel, plan: Plan, importance: Imatrix | None = None) -> GgufLayout:
    """The whole file but the weights, to the byte. Needs no weight, only their shapes."""
    tensors: Sequence[tuple[str, Sequence[int], str]] = [
        (d.tensor, d.shape, d.scheme.type) for d in plan.decisions if isinstance(d.scheme, Ggml)
    ]
    return GgufLayout.of(_metadata(model, plan, importance), tensors)


def _metadata(model: LanguageModel, plan: Plan, importance: Imatrix | None) -> dict[str, Field]:
    """The model's metadata with what depends on the types, in the order that is customary."""
    general = {k: v for k, v in model.metadata.items() if k.startswith("general.")}
    rest = {k: v for k, v in model.metadata.items() if not k.startswith("general.")}
    rest = {k: v for k, v in rest.items() if not k.startswith(_OURS)}  # of an earlier pass
    metadata = {
        **general,
        "general.file_type": u32(file_type(str(plan.options["type"]))),
        "general.quantization_version": u32(_QUANTIZATION_VERSION),
        **rest,
    }
    # Digests are known once the weights are written: their places are, by their length.
    metadata[f"{_OURS}version"] = string(VERSION)
    metadata.update({key: string(BLANK) for key in (SEAL, SOURCE_SHA256, PLAN_SHA256)})
    if importance is not None:
        # The keys under which llama.cpp's quantizer notes the same.
        metadata["quantize.imatrix.dataset"] = string(", ".join(importance.datasets))
        metadata["quantize.imatrix.entries_count"] = u32(len(importance.values))
        metadata["quantize.imatrix.chunks_count"] = u32(importance.chunks)
    return metadata
