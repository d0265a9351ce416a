"""Writing a model's tensors as they are, those with enough zeros as bitmask and values.

Everything streams: some rows of one tensor at a time are read and written, twice, as the file says
first how many values there are. Layout: ``docs/sparse.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core import DTYPE_BITS, Sparse, Weight, tensor_nbytes
from edgeopt.errors import SourceError
from edgeopt.files import safetensors, sparse
from edgeopt.files.seal import BLANK, SEAL, seal
from edgeopt.files.spans import row_spans, ties_of
from edgeopt.numerics.sparse_pack import count_nonzero, pack

__all__ = ["Stored", "write_sparse"]

#: A tensor in two parts takes about this many bytes more of the file's header than one in one.
_HEADER_BYTES = 256

#: What the format itself stores in the file's metadata.
_RESERVED = frozenset({*sparse.SparseHeader({}).metadata(), SEAL})


@dataclass(frozen=True)
class Stored:
    """What became of one tensor. ``before``: its bytes stored densely; ``after``: in the file,
    headers not counted. ``reason`` says why it is dense, and is empty where it is sparse."""

    name: str
    before: int
    after: int
    elements: int
    nonzero: int
    reason: str = ""

    @property
    def sparsity(self) -> float:
        """Share of the elements that are zero, 0 to 1."""
        return 1 - self.nonzero / self.elements if self.elements else 0.0


def write_sparse(
    weights: Sequence[Weight], out: Path, metadata: Mapping[str, str] | None = None
) -> tuple[Stored, ...]:
    """Write ``weights`` to ``out``, each in the fewer bytes, and say what became of each.

    Values come back bit for bit. -0.0 is a value, not a zero: pruning should write 0.0, as a
    product of weights and mask does not. Tied tensors (of one storage) are stored once. The bytes
    depend on the tensors and ``metadata`` alone, strings that the file is to carry besides the
    format's own. Run it inside :func:`edgeopt.files.atomic.writing`.

    Raises SourceError for a tensor that safetensors cannot hold, ValueError for a name given twice
    and for ``metadata`` under one of the format's own keys, OSError as writing does.
    """
    extra = dict(metadata or {})
    if _RESERVED & extra.keys():
        raise ValueError(f"metadata {sorted(_RESERVED & extra.keys())} are the format's own")
    ties = ties_of(weights)
    made = tuple(_stored(weight, ties) for weight in weights)
    outline = _outline(weights, made, ties)
    strings = {**extra, **outline.header.metadata(), SEAL: BLANK}
    with safetensors.filling(out, outline.entries, strings) as put:
        for weight in weights:
            rows = (weight.rows(lo, hi) for lo, hi in row_spans(weight))
            if weight.name in outline.parts:
                mask, values = outline.parts[weight.name]
                for bits, kept in pack(rows):
                    put(mask, bits)
                    put(values, kept)
            elif weight.name not in ties:
                for piece in rows:
                    put(weight.name, piece)
    seal(out)
    return made


def _stored(weight: Weight, ties: Mapping[str, str]) -> Stored:
    if weight.dtype not in safetensors.DTYPES.values() or DTYPE_BITS[weight.dtype] % 8:
        raise SourceError(
            f"tensor {weight.name!r} is {weight.dtype}, which cannot be written as safetensors "
            "here; give the model in float"
        )
    if weight.name in ties:
        return Stored(weight.name, 0, 0, 0, 0, f"stored once, as {ties[weight.name]}")
    dense = tensor_nbytes(weight.shape, weight.dtype)
    nonzero = sum(count_nonzero(weight.rows(lo, hi)) for lo, hi in row_spans(weight))
    scheme = Sparse(nonzero, weight.dtype)
    after, reason = scheme.nbytes(weight.shape), scheme.accepts(weight.shape)
    if reason is None and after + _HEADER_BYTES >= dense:
        reason = f"{dense - after} bytes fewer, and about {_HEADER_BYTES} more of header"
    if reason is not None:
        return Stored(weight.name, dense, dense, weight.size, nonzero, reason)
    return Stored(weight.name, dense, after, weight.size, nonzero)


@dataclass(frozen=True)
class _SparseOutline:
    """What the file will hold; ``parts`` are the names of mask and values of the sparse ones."""

    header: sparse.SparseHeader
    entries: tuple[safetensors.TensorEntry, ...]
    parts: Mapping[str, tuple[str, str]]


def _outline(
    weights: Sequence[Weight], made: Sequence[Stored], ties: Mapping[str, str]
) -> _SparseOutline:
    taken = {weight.name for weight in weights}
    parts: dict[str, tuple[str, str]] = {}
    entries: list[safetensors.TensorEntry] = []
    shapes: dict[str, tuple[int, ...]] = {}
    prefixes: dict[str, str] = {}
    for weight, stored in zip(weights, made, strict=True):
        if weight.name in ties:
            continue
        if stored.reason:
            entries.append(safetensors.TensorEntry(weight.name, weight.dtype, weight.shape))
            continue
        prefix = weight.name
        while taken & set(sparse.part_names(prefix)):
            prefix += "_"
        mask, values = parts[weight.name] = sparse.part_names(prefix)
        taken |= {mask, values}
        shapes[weight.name], prefixes[weight.name] = weight.shape, prefix
        entries.append(safetensors.TensorEntry(mask, "uint8", (Sparse.mask_nbytes(weight.shape),)))
        entries.append(safetensors.TensorEntry(values, weight.dtype, (stored.nonzero,)))
    return _SparseOutline(sparse.SparseHeader(shapes, prefixes, ties), tuple(entries), parts)
