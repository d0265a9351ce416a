"""Sparse weights in a safetensors file: a bitmask and the values that are not zero.

The layout is documented in ``docs/sparse.md``. Any safetensors reader opens the file; this module
says where the parts of a tensor are, and puts them together again (:func:`whole`): the tensors of
such a file are those of the model, in their own shapes and dtypes, bit for bit, wherever a source
is opened. Rows are decoded as they are read, and only those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeopt.core import DTYPE_BITS, Array, Sparse, Storage, Weight, tensor_nbytes
from edgeopt.errors import FormatError
from edgeopt.files.reading import checked_shape
from edgeopt.files.roles import role_of
from edgeopt.numerics.sparse_pack import Ranks, unpack

__all__ = [
    "VERSION",
    "Rows",
    "SparseHeader",
    "Sparsity",
    "is_sparse",
    "part_names",
    "sparsity",
    "whole",
]

VERSION = 1

_MARK = "edgeopt_sparse"
_HEADER = "edgeopt"
_OTHER_MARK = "edgeopt_packed"


def is_sparse(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file's metadata says that it holds sparse weights."""
    return _MARK in metadata


def part_names(stored: str) -> tuple[str, str]:
    """Names of the mask (uint8) and of the values (the tensor's dtype), one dimension each."""
    return f"{stored}.sparse_mask", f"{stored}.sparse_values"


@dataclass(frozen=True)
class SparseHeader:
    """What the metadata of a sparse file says: shapes of the sparse tensors by name, what their
    parts' names begin with (the tensor's own, unless another tensor has one of theirs), and names
    of tensors that are stored under another name -> that name."""

    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """The strings to store; the same header gives the same strings."""
        tensors: dict[str, Any] = {}
        for name, shape in sorted(self.shapes.items()):
            tensors[name] = {"shape": list(shape)}
            if self.stored.get(name, name) != name:
                tensors[name]["stored"] = self.stored[name]
        document = {"tensors": tensors, "tied": dict(sorted(self.tied.items()))}
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        return {"format": "pt", _MARK: str(VERSION), _HEADER: text}


def _read_header(path: Path, metadata: Mapping[str, str]) -> SparseHeader:
    version = metadata.get(_MARK)
    if version != str(VERSION):
        raise FormatError(
            path,
            f"sparse by format version {str(version)[:40]}, this edgeopt reads {VERSION}; "
            "update edgeopt",
            field=_MARK,
        )
    if _OTHER_MARK in metadata:
        raise FormatError(path, "is packed and sparse at once", field=f"{_MARK}, {_OTHER_MARK}")
    try:
        document = json.loads(metadata[_HEADER])
        shapes, stored = {}, {}
        for name, entry in document["tensors"].items():
            shape = entry["shape"]
            if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"tensor {name[:80]!r} has the shape {str(shape)[:80]}")
            shapes[name] = tuple(shape)
            stored[name] = str(entry.get("stored", name))
        tied = {str(alias): str(name) for alias, name in document["tied"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise FormatError(path, f"is malformed ({reason})", field=_HEADER) from error
    return SparseHeader(shapes, stored, tied)


# ---------------------------------------------------------------------------------------------
# reading


def whole(path: Path, stored: Sequence[Weight], metadata: Mapping[str, str]) -> tuple[Weight, ...]:
    """The tensors of a sparse file under their own names, shapes and dtypes, in no more bytes than
    they take: a sparse one's :class:`~edgeopt.core.Storage` is its mask and its values.

    ``stored`` are the file's tensors as they lie there; those that are no parts come as they are,
    tied ones once for each name. Reads no tensor. Raises FormatError where a part is missing or
    its dtype or size is wrong; that a mask has as many bits as there are values is seen when the
    tensor is first read, and a FormatError then.
    """
    header = _read_header(path, metadata)
    left = {weight.name: weight for weight in stored}
    found: dict[str, Weight] = {}
    for name, shape in header.shapes.items():
        mask, values = (_taken(path, left, part) for part in part_names(header.stored[name]))
        rows = Rows(path, name, shape, mask, values)
        found[name] = Weight(
            name=name,
            shape=shape,
            dtype=values.dtype,
            nbytes=tensor_nbytes(shape, values.dtype),
            reader=rows,
            role=role_of(name, values.dtype),
            storage=Storage(f"{path.name}:{name}", 0, rows.nbytes),
        )
    for name, weight in left.items():
        if name in found:
            problem = "is there both sparse and dense"
            raise FormatError(path, problem, field=f"tensor {name[:200]!r}")
        found[name] = weight
    for alias, name in header.tied.items():
        if name not in found or alias in found:
            raise FormatError(path, f"ties {alias[:80]!r} to {name[:80]!r}", field=_HEADER)
        known = found[name]
        # What is tied shares its storage, for whoever counts bytes or looks for ties.
        storage = known.storage or Storage(f"{path.name}:{name}", 0, known.nbytes)
        found[name] = replace(known, storage=storage)
        found[alias] = replace(known, name=alias, storage=storage)
    return tuple(found.values())


def _taken(path: Path, left: dict[str, Weight], name: str) -> Weight:
    weight = left.pop(name, None)
    if weight is None:
        raise FormatError(path, "is missing", field=f"tensor {name[:200]!r}")
    return weight


class Rows:
    """Reads rows of one sparse tensor: a :attr:`Weight.reader <edgeopt.core.Weight>`.

    Keeps 8 bytes for every 32,768 elements once it has read, and nothing else.
    """

    def __init__(
        self, path: Path, name: str, shape: tuple[int, ...], mask: Weight, values: Weight
    ) -> None:
        self._path, self._name, self._shape = path, name, shape
        self._mask, self._values = mask, values
        self._columns = math.prod(shape[1:])
        self._ranks: Ranks | None = None
        self.size = math.prod(shape)
        bits = DTYPE_BITS[values.dtype]
        problem = checked_shape(shape, bits)
        if problem:
            raise self._wrong(problem)
        if bits % 8 or len(values.shape) != 1:
            raise self._wrong(f"values are {values.dtype}{list(values.shape)}, not a row of bytes")
        self.nonzero = values.shape[0]
        if self.nonzero > self.size:
            raise self._wrong(f"{self.nonzero} values for {self.size} elements")
        wanted = (Sparse.mask_nbytes(shape),)
        if (mask.dtype, mask.shape) != ("uint8", wanted):
            raise self._wrong(
                f"the mask is {mask.dtype}{list(mask.shape)}, {self.size} elements make it "
                f"uint8{list(wanted)}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self._mask.nbytes + self._values.nbytes

    def __call__(self, lo: int, hi: int) -> Array:
        count = self._shape[0] if self._shape else 1
        if not 0 <= lo <= hi <= count or (not self._shape and (lo, hi) != (0, 1)):
            raise IndexError(f"rows {lo}:{hi} of a tensor with {count} rows")
        ranks = self._counted()
        begin, end = lo * self._columns, hi * self._columns
        mask = self._mask.rows(begin // 8, -(-end // 8))
        values = self._values.rows(ranks.before(begin), ranks.before(end))
        flat = unpack(mask, begin % 8, end - begin, values)
        return flat.reshape((hi - lo, *self._shape[1:]) if self._shape else ())

    def _counted(self) -> Ranks:
        if self._ranks is None:
            try:
                ranks = Ranks(self._mask.rows, self.size)
            except ValueError as error:
                raise self._wrong(f"the mask is broken: {error}") from error
            if ranks.total != self.nonzero:
                raise self._wrong(
                    f"the mask has {ranks.total} bits set, the file {self.nonzero} values"
                )
            self._ranks = ranks
        return self._ranks

    def _wrong(self, problem: str) -> FormatError:
        return FormatError(self._path, problem, field=f"tensor {self._name[:200]!r}")


# ---------------------------------------------------------------------------------------------
# what is sparse


@dataclass(frozen=True)
class Sparsity:
    """Of the sparse tensors of a model, each stored one once: how many, their elements and those
    that are not zero, their bytes in the file and as they would be stored densely."""

    tensors: int
    elements: int
    nonzero: int
    nbytes: int
    dense: int

    @property
    def share(self) -> float:
        """Share of zeros, 0 to 1."""
        return 1 - self.nonzero / self.elements if self.elements else 0.0


def sparsity(weights: Iterable[Weight]) -> Sparsity | None:
    """None where no tensor is stored sparse. Reads none."""
    found = {id(w.reader): (w.reader, w.nbytes) for w in weights if isinstance(w.reader, Rows)}
    if not found:
        return None
    rows = [reader for reader, _ in found.values()]
    return Sparsity(
        tensors=len(rows),
        elements=sum(r.size for r in rows),
        nonzero=sum(r.nonzero for r in rows),
        nbytes=sum(r.nbytes for r in rows),
        dense=sum(nbytes for _, nbytes in found.values()),
    )
