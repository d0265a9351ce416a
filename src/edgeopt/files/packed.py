"""edgeopt's packed weights: codes, scales and zero points in a safetensors file.

The layout is documented in ``docs/formats.md``. Any safetensors reader opens the file; this module
says where the parts of a tensor are (:class:`PackedLayout`, for writers), and turns the parts back
into tensors that are dequantized when they are read (:func:`unpack`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import DTYPE_BITS, Affine, Codes, Source, Weight, tensor_nbytes
from edgeopt.errors import FormatError
from edgeopt.files.reading import numpy_dtype
from edgeopt.files.safetensors import TensorEntry
from edgeopt.files.seal import BLANK, SEAL
from edgeopt.numerics.affine import SCALE_DTYPES, dequantize
from edgeopt.numerics.pack import pack_rows, unpack_rows

__all__ = [
    "VERSION",
    "PackedHeader",
    "PackedLayout",
    "is_packed",
    "matrix_shape",
    "read_header",
    "unknown_scheme",
    "unpack",
]

VERSION = 1

_MARK = "edgeopt_packed"
_HEADER = "edgeopt"
_BITS = (4, 8)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A tensor as the matrix that is quantized: the first axis, and all the others."""
    return shape[0], math.prod(shape[1:])


def is_packed(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file's metadata says that it holds packed weights."""
    return _MARK in metadata


@dataclass(frozen=True)
class PackedLayout:
    """Where the parts of one quantized tensor are stored, and how large they are.

    ``stored`` is the name that the parts' names begin with: the tensor's own, unless another
    tensor has one of theirs.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: Affine
    stored: str

    @classmethod
    def of(cls, weight: Weight, scheme: Affine, taken: Container[str] = ()) -> PackedLayout:
        """The layout of ``weight``; ``taken`` are the names that its parts must not have."""
        stored = weight.name
        while any(f"{stored}.{part}" in taken for part in ("codes", "scale", "zero")):
            stored += "_"
        return cls(weight.name, weight.shape, weight.dtype, scheme, stored)

    @property
    def codes(self) -> TensorEntry:
        rows, columns = matrix_shape(self.shape)
        bits = self.scheme.bits
        dtype = "int8" if bits == 8 and self.scheme.symmetric else "uint8"
        return TensorEntry(f"{self.stored}.codes", dtype, (rows, (columns * bits + 7) // 8))

    @property
    def scale(self) -> TensorEntry:
        return TensorEntry(f"{self.stored}.scale", self.scheme.scale, self._blocks)

    @property
    def zero(self) -> TensorEntry | None:
        if self.scheme.symmetric:
            return None
        rows, blocks = self._blocks
        return TensorEntry(
            f"{self.stored}.zero", "uint8", (rows, (blocks * self.scheme.bits + 7) // 8)
        )

    @property
    def _blocks(self) -> tuple[int, int]:
        return self.scheme.blocks(matrix_shape(self.shape))

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """What is stored: codes, scale and, where there is one, zero."""
        zero = self.zero
        return (self.codes, self.scale) if zero is None else (self.codes, self.scale, zero)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)

    def pack(self, codes: Codes) -> tuple[NDArray[Any], ...]:
        """The bytes of some rows, one array for each of :attr:`entries`, in that order."""
        parts = [
            pack_rows(codes.q, self.scheme.bits),
            codes.scale.astype(numpy_dtype(self.scheme.scale)),
        ]
        if codes.zero is not None:
            parts.append(pack_rows(codes.zero, self.scheme.bits))
        return tuple(np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts)


@dataclass(frozen=True)
class PackedHeader:
    """What the metadata of a packed file says.

    ``tied`` maps the names of tensors that are stored under another name to that name.
    """

    layouts: Mapping[str, PackedLayout]
    tied: Mapping[str, str] = field(default_factory=dict)
    source_sha256: str = ""
    plan: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """The strings to store; the same header gives the same strings."""
        schemes: list[dict[str, Any]] = []
        tensors: dict[str, Any] = {}
        for name, layout in sorted(self.layouts.items()):
            scheme = {k: v for k, v in dataclasses.asdict(layout.scheme).items() if k != "axis"}
            if scheme not in schemes:
                schemes.append(scheme)
            tensors[name] = {
                "scheme": schemes.index(scheme),
                "dtype": layout.dtype,
                "shape": list(layout.shape),
            }
            if layout.stored != name:
                tensors[name]["stored"] = layout.stored
        document = {
            "schemes": schemes,
            "tensors": tensors,
            "tied": dict(sorted(self.tied.items())),
            "source_sha256": self.source_sha256,
            "plan": self.plan,
            "versions": dict(sorted(self.versions.items())),
        }
        return {
            "format": "pt",
            _MARK: str(VERSION),
            _HEADER: json.dumps(document, ensure_ascii=False, separators=(",", ":")),
            SEAL: BLANK,
        }


def read_header(path: Path, metadata: Mapping[str, str]) -> PackedHeader:
    """Raises FormatError for another version, and for a document that does not hold together."""
    version = metadata.get(_MARK)
    if version != str(VERSION):
        raise FormatError(
            path,
            f"packed by format version {version}, this edgeopt reads {VERSION}; update edgeopt",
            field=_MARK,
        )
    try:
        return _header(json.loads(metadata[_HEADER]))
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise FormatError(path, f"is malformed ({reason})", field=_HEADER) from error


def _header(document: dict[str, Any]) -> PackedHeader:
    schemes = [_scheme(scheme) for scheme in document["schemes"]]
    layouts = {}
    for name, entry in document["tensors"].items():
        shape = entry["shape"]
        if len(shape) < 2 or not all(type(size) is int and size > 0 for size in shape):
            raise ValueError(f"tensor {name[:80]!r} has the shape {str(shape)[:80]}")
        if entry["dtype"] not in DTYPE_BITS:
            raise ValueError(f"tensor {name[:80]!r} has the dtype {str(entry['dtype'])[:40]!r}")
        layouts[name] = PackedLayout(
            name,
            tuple(shape),
            entry["dtype"],
            schemes[int(entry["scheme"])],
            str(entry.get("stored", name)),
        )
    tied = {str(alias): str(name) for alias, name in document["tied"].items()}
    return PackedHeader(
        layouts,
        tied,
        str(document["source_sha256"]),
        str(document["plan"]),
        {str(k): str(v) for k, v in document["versions"].items()},
    )


def _scheme(document: Mapping[str, Any]) -> Affine:
    scheme = dataclasses.replace(Affine.from_json(document), axis=-1)
    problem = unknown_scheme(scheme)
    if problem:
        raise ValueError(problem)
    return scheme


def unknown_scheme(scheme: Affine) -> str | None:
    """None when the format can store the scheme, else what is wrong with it, in a few words."""
    known = (
        type(scheme.bits) is int
        and scheme.bits in _BITS
        and (scheme.block is None or (type(scheme.block) is int and scheme.block > 0))
        and type(scheme.symmetric) is bool
        and scheme.axis == -1
        and scheme.scale in SCALE_DTYPES
    )
    return None if known else f"unknown scheme {str(scheme.to_json())[:100]}"


def unpack(source: Source) -> tuple[Weight, ...]:
    """The tensors of a packed file under their own names, shapes and dtypes.

    Each is dequantized as its rows are read, and only those. Tensors that were kept come as they
    are, tied ones once for each name. ``source`` is what :func:`edgeopt.files.safetensors.describe`
    gives for the file. Raises FormatError where a part is missing or has another shape.
    """
    header = read_header(source.path, source.details["metadata"])
    stored = {weight.name: weight for weight in source.weights}
    found: dict[str, Weight] = {}
    parts: set[str] = set()
    for name, layout in header.layouts.items():
        pieces = [_piece(source.path, stored, entry) for entry in layout.entries]
        parts.update(entry.name for entry in layout.entries)
        found[name] = Weight(
            name=name,
            shape=layout.shape,
            dtype=layout.dtype,
            nbytes=tensor_nbytes(layout.shape, layout.dtype),
            reader=_reader(layout, pieces),
        )
    for name, weight in stored.items():
        if name not in parts:
            found[name] = weight
    for alias, name in header.tied.items():
        if name not in found or alias in found:
            raise FormatError(
                source.path, f"ties {alias[:80]!r} to {name[:80]!r}", field=f"{_HEADER}, tied"
            )
        found[alias] = dataclasses.replace(found[name], name=alias)
    return tuple(found.values())


def _piece(path: Path, stored: Mapping[str, Weight], entry: TensorEntry) -> Weight:
    weight = stored.get(entry.name)
    if weight is None:
        raise FormatError(path, "is missing", field=f"tensor {entry.name[:200]!r}")
    if (weight.dtype, weight.shape) != (entry.dtype, entry.shape):
        raise FormatError(
            path,
            f"is {weight.dtype}{list(weight.shape)}, its scheme makes it "
            f"{entry.dtype}{list(entry.shape)}",
            field=f"tensor {entry.name[:200]!r}",
        )
    return weight


def _reader(layout: PackedLayout, pieces: Sequence[Weight]) -> Callable[[int, int], NDArray[Any]]:
    columns = matrix_shape(layout.shape)[1]
    scheme = layout.scheme

    def read(lo: int, hi: int) -> NDArray[Any]:
        codes, scale, *zero = (piece.rows(lo, hi) for piece in pieces)
        q = unpack_rows(codes.view(np.uint8), columns, scheme.bits, signed=scheme.symmetric)
        blocks = scale.shape[1]
        zeros = unpack_rows(zero[0], blocks, scheme.bits, signed=False) if zero else None
        rows = dequantize(Codes(q, scale.astype(np.float32), zeros), scheme.block, columns)
        return rows.astype(numpy_dtype(layout.dtype), copy=False).reshape(-1, *layout.shape[1:])

    return read
