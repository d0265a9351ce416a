"""How large the model would be in other forms, from shapes alone.

What edgeopt writes as safetensors is predicted to the byte, by the code that lays it out. So is
the FP16 ONNX that it writes from an ONNX source, up to the size that is worth reading, and every
GGUF file of a model whose family is known. INT8 and INT4 ONNX are counted as the plain recipe makes
them; the fidelity that is measured then may ask for more, so they are no promise. Elsewhere nobody
knows the graph before capture: estimates, marked so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgeopt.anatomy import commands
from edgeopt.anatomy.gguf_sizes import gguf_sizes
from edgeopt.anatomy.onnx_sizes import onnx_sizes
from edgeopt.core import Affine, Source, Weight
from edgeopt.core.ggml import TYPES_BY_NAME
from edgeopt.errors import SourceError

__all__ = ["Prediction", "predictions"]

_DICT_KINDS = ("torch-state-dict", "torch-checkpoint", "safetensors")


@dataclass(frozen=True)
class Prediction:
    """``exact``: to the byte, as the file will lie on disk. ``command`` makes it; None where
    edgeopt has none."""

    name: str
    format: str
    nbytes: int
    exact: bool
    command: str | None
    note: str = ""


def predictions(
    source: Source, copies: frozenset[str] = frozenset(), *, deep: bool = False
) -> tuple[Prediction, ...]:
    """The sizes that apply to ``source``. Tensors named in ``copies`` are stored once elsewhere.

    ``deep``: a large ONNX file is read whole too, so that its sizes are exact.
    """
    weights = _distinct(source, copies)
    if not any(weight.is_float or weight.dtype in TYPES_BY_NAME for weight in weights):
        return ()
    made = [] if source.details.get("quantized") else [*_safetensors(source)]
    if source.kind != "gguf" and not source.details.get("quantized"):
        made += _onnx(source, weights, deep)
    if source.kind in ("gguf", "hf-folder"):
        made += [
            Prediction(name, "GGUF", nbytes, True, command)
            for name, nbytes, command in gguf_sizes(source)
        ]
    return tuple(made)


def _distinct(source: Source, copies: frozenset[str]) -> tuple[Weight, ...]:
    """The model's tensors; those that share their bytes (tied) once."""
    seen: set[tuple[str, int, int]] = set()
    kept = []
    for weight in source.weights:
        if weight.name in copies:
            continue
        if weight.storage is not None:
            place = (weight.storage.key, weight.storage.offset, weight.nbytes)
            if place in seen:
                continue
            seen.add(place)
        kept.append(weight)
    return tuple(kept)


def _is_matrix(weight: Weight) -> bool:
    return weight.is_float and len(weight.shape) >= 2 and weight.role == "weight"


# ---------------------------------------------------------------------------------------------
# what edgeopt writes


def _safetensors(source: Source) -> Iterator[Prediction]:
    if source.kind not in _DICT_KINDS:
        return
    from edgeopt.targets.packed.make import predicted_bytes
    from edgeopt.targets.packed.plan import plan_weights

    for bits in (8, 4):
        try:
            # A digest has one length, so that the file's size does not depend on it.
            plan = plan_weights(
                source, bits=bits, options={**_PLAIN, "bits": bits}, sha256="0" * 64
            )
        except SourceError:
            return  # nothing to quantize: the verb itself says why
        command = commands.quantize(source, "--bits", str(bits))
        nbytes = predicted_bytes(source, plan)
        yield Prediction(f"INT{bits}", "safetensors", nbytes, True, command)


#: What `edgeopt quantize` records when no option is given.
_PLAIN = {"prefer": "balanced", "target": "here", "block_size": None}

_SCHEMES = {8: Affine(8, None, scale="float32"), 4: Affine(4, 128, symmetric=False)}


def _onnx(source: Source, weights: Sequence[Weight], deep: bool) -> Iterator[Prediction]:
    sizes = onnx_sizes(source, deep=deep) if source.kind == "onnx" else None
    if sizes is not None:
        yield from _counted(source, sizes)
        return
    code = source.kind in _DICT_KINDS
    note = "with --model, the code that it fills" if code else ""
    graph = _graph_bytes(source, weights)
    model = ("--model", "MODULE:CALLABLE") if code else ()
    half = sum(w.size * 2 if w.is_float else w.nbytes for w in weights)
    yield Prediction(
        "FP16", "ONNX", half + graph, False, commands.export(source, "--half", *model), note
    )
    for bits, scheme in _SCHEMES.items():
        stored = sum(_quantized(weight, scheme) for weight in weights)
        command = commands.quantize(source, "--bits", str(bits), *model)
        yield Prediction(f"INT{bits}", "ONNX", stored + graph, False, command, note)


def _counted(source: Source, sizes: Mapping[str, int]) -> Iterator[Prediction]:
    """The ONNX files of the options that leave nothing to this machine's timing."""
    for name, options in _COUNTED.items():
        if name not in sizes:
            continue
        half = name == "FP16"
        make, note = (commands.export, "") if half else (commands.quantize, _PLAIN_RECIPE)
        yield Prediction(name, "ONNX", sizes[name], half, make(source, *options), note)


_COUNTED = {
    "FP16": ("--half",),
    "INT8": ("--bits", "8", "--target", "portable", "--prefer", "size"),
    "INT4": ("--bits", "4", "--target", "portable", "--prefer", "size"),
}
_PLAIN_RECIPE = "the plain recipe's; more where the fidelity measured asks for it"


def _quantized(weight: Weight, scheme: Affine) -> int:
    """Matrices as rows over all other axes; what has one axis stays FP32."""
    if not _is_matrix(weight):
        return weight.size * 4 if weight.is_float else weight.nbytes
    rows = weight.shape[0]
    return scheme.nbytes((rows, weight.size // rows)) if rows else 0


def _graph_bytes(source: Source, weights: Sequence[Weight]) -> int:
    """What the nodes take: known of an ONNX file, else some 700 bytes for each weight."""
    if source.kind == "onnx":
        return max(0, source.nbytes - sum(weight.nbytes for weight in source.weights))
    return 700 * len(weights)
