"""The few frozen types that every room shares. numpy and the standard library only.

The path of every verb is *open -> plan -> transform -> write -> prove -> report*, and these types
are what travels along it: a :class:`Source` describes what was handed over, a :class:`Plan` says
what will happen to every tensor, a :class:`Change` what did happen, a :class:`Proof` what it was
worth, measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DTYPE_BITS",
    "FLOAT_DTYPES",
    "Affine",
    "Change",
    "Check",
    "Codes",
    "Decision",
    "Fidelity",
    "InputSpec",
    "Measurement",
    "Plan",
    "Progress",
    "Proof",
    "Scheme",
    "Source",
    "Storage",
    "Verdict",
    "Weight",
    "format_bytes",
    "tensor_nbytes",
]

Array: TypeAlias = NDArray[Any]

#: Called with a step's name and, where it is known, how far along it is (0 to 1).
Progress: TypeAlias = Callable[[str, float | None], None]

#: Bits per element of every plain dtype that a file can hold (GGUF block types are not plain).
DTYPE_BITS: Mapping[str, int] = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "float4_e2m1fn": 4,
    "complex64": 64,
    "complex128": 128,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "int4": 4,
    "int2": 2,
    "uint64": 64,
    "uint32": 32,
    "uint16": 16,
    "uint8": 8,
    "uint4": 4,
    "uint2": 2,
    "bool": 8,
}

FLOAT_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})


def tensor_nbytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor of plain ``dtype`` stored densely; sub-byte types round up to a byte."""
    return (math.prod(shape) * DTYPE_BITS[dtype] + 7) // 8


def format_bytes(n: float) -> str:
    """Bytes for a person, in powers of 1000, as file managers and published sizes count them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 999.5 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError("unreachable")


# ---------------------------------------------------------------------------------------------
# what was handed over


@dataclass(frozen=True)
class Storage:
    """The stored bytes behind a tensor: two tensors with equal keys share them.

    ``offset`` is where the tensor begins inside the storage, in bytes; ``nbytes`` is the size of
    the whole storage, which is larger than the tensor's own when the tensor is a view of a part.
    """

    key: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Weight:
    """One tensor, known before it is read.

    ``dtype`` is numpy's name (plus ``bfloat16``, ``float8_*``, ``int4`` and the like), or the
    official name of a GGUF block type (``Q4_K``). ``role`` says what the tensor is there for:
    ``weight`` (a parameter), ``buffer`` (running statistics, position ids), ``optimizer``,
    ``ema`` (an averaged copy) or ``other``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    reader: Callable[[int, int], Array] = field(repr=False, compare=False)
    role: str = "weight"
    storage: Storage | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOAT_DTYPES

    def rows(self, lo: int, hi: int) -> Array:
        """Rows ``lo:hi`` along the first axis, mapped or streamed, never cached.

        A 0-dim tensor has one row, itself: ``rows(0, 1)`` has shape ``()``.
        """
        return self.reader(lo, hi)

    def array(self) -> Array:
        """The whole tensor."""
        return self.reader(0, self.shape[0] if self.shape else 1)


@dataclass(frozen=True)
class InputSpec:
    """What a model takes (or gives): name, numpy dtype, shape with names for free dimensions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Source:
    """What the user handed over, described before any tensor is read.

    ``kind`` is one of ``torch-state-dict``, ``torch-checkpoint``, ``torch-module``,
    ``torchscript``, ``torch-exported`` (``.pt2``), ``safetensors``, ``onnx``, ``gguf`` and
    ``hf-folder``. ``weights`` are the model's own tensors; ``extras`` everything else the files
    carry (optimizer state, averaged copies, ...), told apart by ``Weight.role``.
    ``needs_trust`` is None, or why loading the model (not: inspecting it) runs code it carries.
    """

    path: Path
    kind: str
    files: tuple[Path, ...]
    nbytes: int
    weights: tuple[Weight, ...]
    extras: tuple[Weight, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    needs_trust: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def sha256(self) -> str:
        """Digest of all its files' bytes, in the order of their relative names.

        For one file this is what ``sha256sum`` prints. For several, each file's relative name
        and digest are hashed in turn.
        """
        if len(self.files) == 1:
            return _sha256_file(self.files[0])
        whole = hashlib.sha256()
        root = self.path if self.path.is_dir() else self.path.parent
        for file in sorted(self.files):
            try:
                name = file.relative_to(root).as_posix()
            except ValueError:
                name = file.name
            whole.update(f"{name}\0{_sha256_file(file)}\n".encode())
        return whole.hexdigest()


def _sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# how numbers are stored


class Scheme(Protocol):
    """How numbers are stored: sizes without data."""

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes that a tensor of this shape takes: codes, scales and zero points."""
        ...

    def accepts(self, shape: Sequence[int]) -> str | None:
        """None when the shape can be stored so, else the reason why not, in a few words."""
        ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Affine:
    """``w ~ (q - zero) * scale`` with one scale per block (or per channel, or per tensor).

    ``axis`` is the tensor's reduction axis, along which blocks run; every other axis is kept
    apart (each row its own scales). ``block`` is the number of elements that share a scale along
    that axis: None means the whole axis (per channel), -1 the whole tensor. ``symmetric`` schemes
    store no zero point. ``scale`` is the dtype scales are stored in; zero points are stored as
    unsigned codes of ``bits``.
    """

    bits: int
    block: int | None = None
    symmetric: bool = True
    axis: int = -1
    scale: str = "float32"

    def blocks(self, shape: Sequence[int]) -> tuple[int, int]:
        """(rows, blocks per row) for a tensor of this shape."""
        if self.block == -1:
            return 1, 1
        columns = shape[self.axis] if shape else 1
        rows = math.prod(shape) // columns if columns else 0
        if self.block is None:
            return rows, 1
        return rows, -(-columns // self.block)

    def nbytes(self, shape: Sequence[int]) -> int:
        rows, per_row = self.blocks(shape)
        codes = (math.prod(shape) * self.bits + 7) // 8
        scales = rows * per_row * DTYPE_BITS[self.scale] // 8
        zeros = 0 if self.symmetric else (rows * per_row * self.bits + 7) // 8
        return codes + scales + zeros

    def accepts(self, shape: Sequence[int]) -> str | None:
        if math.prod(shape) == 0:
            return "no elements"
        return None

    def to_json(self) -> dict[str, Any]:
        return {"type": "affine", **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Affine:
        return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data})


@dataclass(frozen=True)
class Codes:
    """What an affine method returns for a matrix ``[rows, columns]``, blocks along the columns.

    ``q``: integer codes, int8 when symmetric (``-2**(bits-1) .. 2**(bits-1)-1``), uint8 otherwise
    (``0 .. 2**bits-1``), shape ``[rows, columns]``. ``scale``: float32, ``[rows, blocks]``.
    ``zero``: uint8 ``[rows, blocks]``, or None when symmetric.
    """

    q: NDArray[np.int8] | NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8] | None = None


# ---------------------------------------------------------------------------------------------
# what will happen, and what did


@dataclass(frozen=True)
class Decision:
    """What will happen to one tensor. ``scheme`` None means not quantized, and ``reason`` why.

    A tensor that is not quantized is kept as it is, unless ``method`` is ``cast``: then it is
    stored in fewer bits of float (form ``half``: float16). ``op`` is the operator (or, for a bare
    state dict, the kind of tensor) that uses it, ``form`` how the stored codes reach the
    arithmetic (``matmul-integer``, ``matmul-nbits``, ``folded``, ``gather``, ``qdq``, ``packed``,
    ``half``, ``keep``), ``nbytes`` what the stored form will take.
    """

    tensor: str
    op: str
    method: str
    form: str
    scheme: Affine | None
    reason: str
    nbytes: int
    shape: tuple[int, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the tensor stays as it is: neither quantized nor cast."""
        return self.scheme is None and self.method != "cast"

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        data["scheme"] = self.scheme.to_json() if self.scheme else None
        data["shape"] = list(self.shape)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        values = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        scheme = values.get("scheme")
        values["scheme"] = Affine.from_json(scheme) if scheme else None
        values["shape"] = tuple(values.get("shape", ()))
        return cls(**values)


@dataclass(frozen=True)
class Choice:
    """A graph-wide choice, with the timings (seconds, raw) of every candidate that was tried."""

    name: str
    value: str
    reason: str
    timings: Mapping[str, Sequence[float]] = field(default_factory=dict)


PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What will happen, before it happens: one decision a tensor, plus graph-wide choices.

    The same source and the same plan give the same bytes. ``digest`` leaves out timings and
    reasons: two plans that decide alike are the same plan.
    """

    source_sha256: str
    options: Mapping[str, Any]
    decisions: tuple[Decision, ...]
    choices: tuple[Choice, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def choice(self, name: str, default: str = "") -> str:
        """The value of a graph-wide choice."""
        return next((c.value for c in self.choices if c.name == name), default)

    def digest(self) -> str:
        body = {
            "source": self.source_sha256,
            "options": dict(self.options),
            "choices": {c.name: c.value for c in self.choices},
            "decisions": [
                {k: v for k, v in d.to_json().items() if k != "reason"} for d in self.decisions
            ],
            "calibration": dict(self.calibration),
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "edgeopt_plan": PLAN_VERSION,
            "digest": self.digest(),
            "source_sha256": self.source_sha256,
            "options": dict(self.options),
            "choices": [
                {
                    "name": c.name,
                    "value": c.value,
                    "reason": c.reason,
                    "timings": {k: list(v) for k, v in c.timings.items()},
                }
                for c in self.choices
            ],
            "decisions": [d.to_json() for d in self.decisions],
            "calibration": dict(self.calibration),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Raises ValueError on another version, KeyError or TypeError on a malformed document."""
        if data.get("edgeopt_plan") != PLAN_VERSION:
            raise ValueError(
                f"plan version {data.get('edgeopt_plan')!r}, this edgeopt reads {PLAN_VERSION}"
            )
        return cls(
            source_sha256=data["source_sha256"],
            options=dict(data["options"]),
            decisions=tuple(Decision.from_json(d) for d in data["decisions"]),
            choices=tuple(
                Choice(c["name"], c["value"], c.get("reason", ""), c.get("timings", {}))
                for c in data["choices"]
            ),
            calibration=dict(data.get("calibration", {})),
        )


@dataclass(frozen=True)
class Change:
    """What did happen to one tensor. "Kept" always carries its reason in the decision.

    ``sqnr_db`` is the tensor's own signal to quantization noise, None where nothing was changed.
    """

    decision: Decision
    before: int
    after: int
    sqnr_db: float | None = None


# ---------------------------------------------------------------------------------------------
# what it was worth


@dataclass(frozen=True)
class Fidelity:
    """How close the artifact's output is to the source's, over all samples, for one output.

    ``sqnr_db``: 10 log10(sum(ref**2) / sum((ref-got)**2)), inf when identical. ``cosine``: mean
    over samples. ``top1``: share of positions (all but the last axis) with the same argmax, None
    where the last axis is no class axis. ``kl``: mean KL(softmax(ref) || softmax(got)) in nats,
    None likewise. ``finite``: no NaN or Inf appeared that the source did not have. ``constant``:
    the source's output did not change from sample to sample, nor within one.
    """

    output: str
    sqnr_db: float
    cosine: float
    max_abs: float
    top1: float | None
    kl: float | None
    finite: bool
    constant: bool
    samples: int


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one metric of one subject. Statistics are derived, never stored.

    ``values`` holds one tuple per worker process.
    """

    subject: Literal["source", "artifact"]
    metric: str
    unit: str
    conditions: Mapping[str, Any]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Check:
    """One line of the verdict: what was asked, what was found, and whether it holds."""

    name: str
    passed: bool
    found: str
    limit: str
    advice: str = ""


@dataclass(frozen=True)
class Verdict:
    """Proven when every check passed. ``unproven`` names what could not be checked, and why."""

    checks: tuple[Check, ...]
    unproven: tuple[str, ...] = ()

    @property
    def proven(self) -> bool:
        return all(c.passed for c in self.checks)


PROOF_VERSION = 1


@dataclass(frozen=True)
class Proof:
    """What a verb returns and a report renders; ``to_json`` is the versioned document."""

    verb: str
    source: Mapping[str, Any]
    artifact: Mapping[str, Any]
    plan: Plan | None
    changes: tuple[Change, ...]
    coverage: Mapping[str, Any]
    fidelity: tuple[Fidelity, ...]
    samples: str
    measurements: tuple[Measurement, ...]
    environment: Mapping[str, Any]
    verdict: Verdict
    usage: str = ""
    notes: tuple[str, ...] = ()

    @property
    def proven(self) -> bool:
        return self.verdict.proven

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready document; infinities become the strings "inf" and "-inf", NaN "nan"."""
        document = {
            "edgeopt_proof": PROOF_VERSION,
            "verb": self.verb,
            "verdict": {"proven": self.proven, **dataclasses.asdict(self.verdict)},
            "source": dict(self.source),
            "artifact": dict(self.artifact),
            "coverage": dict(self.coverage),
            "samples": self.samples,
            "fidelity": [dataclasses.asdict(f) for f in self.fidelity],
            "measurements": [dataclasses.asdict(m) for m in self.measurements],
            "changes": [
                {
                    **c.decision.to_json(),
                    "before": c.before,
                    "after": c.after,
                    "sqnr_db": c.sqnr_db,
                }
                for c in self.changes
            ],
            "plan": self.plan.to_json() if self.plan else None,
            "environment": dict(self.environment),
            "usage": self.usage,
            "notes": list(self.notes),
        }
        cleaned: dict[str, Any] = _json_ready(document)
        return cleaned


def _json_ready(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json_ready(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(v) for v in value]
    if isinstance(value, np.generic):
        return _json_ready(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Path):
        return str(value)
    return value
