"""safetensors: a bounded reader, and a streaming deterministic writer.

A file is an 8-byte little-endian length, that many bytes of JSON (name -> dtype, shape, begin and
end of its data), and the data, in one piece without holes. The reader holds a file to all of that
(the reference implementation of version 0.8 lets duplicate keys pass; this one does not) and maps
the data. The writer takes one tensor at a time, in pieces, so that a model larger than memory can
be written; the reference one needs all tensors at once.

Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import DTYPE_BITS, Source, Weight, tensor_nbytes
from edgeopt.errors import FormatError, SourceError
from edgeopt.files.reading import (
    FileBytes,
    checked_shape,
    is_plain_name,
    plain_reader,
    read_head,
    read_json,
    reading,
)
from edgeopt.files.roles import role_of
from edgeopt.files.sparse import is_sparse, whole

__all__ = [
    "DTYPES",
    "MAX_HEADER",
    "TensorEntry",
    "describe",
    "describe_index",
    "filling",
    "matches",
    "require_held",
    "size",
    "weight_map",
    "weights_of",
    "write",
]

#: The format's names of dtypes -> ours.
DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn",
    "F6_E2M3": "float6_e2m3fn",
    "F6_E3M2": "float6_e3m2fn",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}

#: The reference implementation reads no larger header.
MAX_HEADER = 100_000_000

_ALIGNMENT = 64
_METADATA = "__metadata__"
_INDEX_SUFFIX = ".safetensors.index.json"

ByteChunk: TypeAlias = "bytes | bytearray | memoryview | NDArray[Any]"


def matches(path: Path, head: bytes) -> bool:
    """A header length followed by the brace that every header begins with; or an index file."""
    if path.name.endswith(_INDEX_SUFFIX):
        return head.lstrip()[:1] == b"{"
    # Eight bytes of text before a brace are a text file, not a length.
    return len(head) > 8 and head[8:9] == b"{" and not _is_text(head[:8])


def _is_text(data: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\r\n" for byte in data)


def describe(path: Path) -> Source:
    """One file, or a ``*.safetensors.index.json`` with the shards beside it.

    ``details``: ``metadata`` (the file's own strings), ``header_bytes`` (length field, JSON and
    padding, over all files), ``files`` (bytes by file name). Raises FormatError.
    """
    if path.name.endswith(_INDEX_SUFFIX):
        return describe_index(path)
    weights, metadata, header = weights_of(path)
    with reading(path):
        nbytes = path.stat().st_size
    return Source(
        path=path,
        kind="safetensors",
        files=(path,),
        nbytes=nbytes,
        weights=weights,
        details={"metadata": metadata, "header_bytes": header, "files": {path.name: nbytes}},
    )


def describe_index(path: Path) -> Source:
    """A sharded model, described by its index.

    The index maps tensor names to file names. Shards must be plain names in the index's own
    folder, hold every tensor that the index says they do, and no tensor twice.
    """
    placed = weight_map(path)
    shards = sorted(set(placed.values()))
    weights: dict[str, Weight] = {}
    held: dict[str, set[str]] = {}
    metadata: dict[str, str] = {}
    header = 0
    files = [path]
    for shard in shards:
        file = path.with_name(shard)
        if not file.exists():
            raise SourceError(
                f"{path}: names the shard {shard!r}, which is not beside it; "
                f"all {len(shards)} shards are needed"
            )
        found, strings, length = weights_of(file)
        for weight in found:
            if weight.name in weights:
                raise FormatError(file, f"tensor {weight.name!r} is in another shard as well")
            weights[weight.name] = weight
        held[shard] = {weight.name for weight in found}
        metadata.update(strings)
        header += length
        files.append(file)
    require_held(path, placed, held)
    with reading(path):
        sizes = {file.name: file.stat().st_size for file in files}
    return Source(
        path=path,
        kind="safetensors",
        files=tuple(files),
        nbytes=sum(sizes.values()),
        weights=tuple(weights.values()),
        details={"metadata": metadata, "header_bytes": header, "files": sizes},
    )


def describe_shards(files: Sequence[Path]) -> Source:
    """A sharded model whose index is missing: all that its shards hold. FormatError where a tensor
    is in two of them."""
    parts = [describe(file) for file in files]
    seen: set[str] = set()
    for part in parts:
        for weight in part.weights:
            if weight.name in seen:
                raise FormatError(part.path, f"tensor {weight.name!r} is in another shard as well")
            seen.add(weight.name)
    return Source(
        path=files[0],
        kind="safetensors",
        files=tuple(files),
        nbytes=sum(part.nbytes for part in parts),
        weights=tuple(weight for part in parts for weight in part.weights),
        details={
            "metadata": {k: v for part in parts for k, v in part.details["metadata"].items()},
            "header_bytes": sum(part.details["header_bytes"] for part in parts),
            "files": {file.name: part.nbytes for file, part in zip(files, parts, strict=True)},
        },
    )


def weight_map(path: Path) -> dict[str, str]:
    """An index's map from tensor names to the plain names of files beside it."""
    placed = read_json(path, limit=MAX_HEADER).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise FormatError(path, "has no weight_map from tensor names to files", field="weight_map")
    for name, shard in placed.items():
        if not is_plain_name(shard):
            raise FormatError(
                path,
                f"places {name[:200]!r} in {str(shard)[:200]!r}; "
                "a shard must be a plain file name, in the same folder",
                field="weight_map",
            )
    return placed


def require_held(
    path: Path, placed: Mapping[str, str], held: Mapping[str, Collection[str]]
) -> None:
    """FormatError where a shard (file name -> tensor names) lacks what the index places in it."""
    for name, shard in placed.items():
        if name not in held[shard]:
            raise FormatError(
                path, f"places tensor {name[:200]!r} in {shard!r}, which does not hold it"
            )


# ---------------------------------------------------------------------------------------------
# reading


def weights_of(path: Path) -> tuple[tuple[Weight, ...], dict[str, str], int]:
    """(tensors in the order of their data, the file's strings, bytes before the data).

    Where edgeopt stored tensors sparse, they come whole, under their own names.
    """
    file = FileBytes(path)
    header, start = _header(path, file.size)
    strings = header.pop(_METADATA, {})
    if not isinstance(strings, dict) or not all(isinstance(v, str) for v in strings.values()):
        raise FormatError(path, "must map strings to strings", field=_METADATA)
    spans = []
    for name, entry in header.items():
        dtype, shape, begin, end = _tensor(path, name, entry)
        spans.append((begin, end, name, dtype, shape))
    spans.sort(key=lambda span: span[:2])
    _require_covered(path, spans, file.size - start)
    weights = tuple(
        Weight(
            name=name,
            shape=shape,
            dtype=dtype,
            nbytes=end - begin,
            reader=plain_reader(file, start + begin, shape, dtype),
            role=role_of(name, dtype),
        )
        for begin, end, name, dtype, shape in spans
    )
    return whole(path, weights, strings) if is_sparse(strings) else weights, strings, start


def _header(path: Path, nbytes: int) -> tuple[dict[str, Any], int]:
    head = read_head(path, 8)
    if len(head) < 8:
        raise FormatError(path, f"{len(head)} bytes, a header length takes 8", field="header")
    length = int.from_bytes(head, "little")
    if length > MAX_HEADER:
        raise FormatError(
            path, f"header of {length} bytes, the limit is {MAX_HEADER}", field="header", offset=0
        )
    if 8 + length > nbytes:
        raise FormatError(
            path,
            f"header of {length} bytes in a file of {nbytes}: cut short, or not safetensors",
            field="header",
            offset=0,
        )
    text = read_head(path, 8 + length)[8:]
    if text[:1] != b"{":
        raise FormatError(path, "does not begin with a brace", field="header", offset=8)
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise FormatError(path, f"no valid JSON ({reason})", field="header", offset=8) from error
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0][:200]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _tensor(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    def wrong(problem: str) -> FormatError:
        return FormatError(path, problem, field=f"tensor {name[:200]!r}")

    if not isinstance(entry, dict):
        raise wrong("has no dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry.get("dtype"), str) else None
    if dtype is None:
        raise wrong(f"dtype {str(entry.get('dtype'))[:40]!r} is not one of {', '.join(DTYPES)}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _counts(shape):
        raise wrong("the shape is no list of sizes from 0 on")
    problem = checked_shape(shape, DTYPE_BITS[dtype])
    if problem:
        raise wrong(problem)
    if not _counts(offsets) or len(offsets) != 2:
        raise wrong("data_offsets are not two positions from 0 on")
    begin, end = offsets
    if tensor_nbytes(shape, dtype) != end - begin:
        raise wrong(
            f"{entry['dtype']}{shape} takes {tensor_nbytes(shape, dtype)} bytes, "
            f"data_offsets give it {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _require_covered(
    path: Path, spans: Sequence[tuple[int, int, str, str, tuple[int, ...]]], nbytes: int
) -> None:
    position = 0
    for begin, end, name, _, _ in spans:
        if begin != position:
            what = "overlaps the one before it" if begin < position else "leaves a hole"
            raise FormatError(
                path,
                f"data begins at {begin} and {what}; the data before it ends at {position}",
                field=f"tensor {name[:200]!r}",
            )
        position = end
    if position != nbytes:
        what = "cut short" if position > nbytes else "with bytes that belong to no tensor"
        raise FormatError(path, f"holds {nbytes} bytes of data, {position} are described: {what}")


# ---------------------------------------------------------------------------------------------
# writing


@dataclass(frozen=True)
class TensorEntry:
    """One tensor to write. ``chunks()`` gives its bytes in order, little-endian, in pieces.

    :func:`filling` is told the bytes otherwise, and needs no ``chunks``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[ByteChunk]] = tuple

    @property
    def nbytes(self) -> int:
        return tensor_nbytes(self.shape, self.dtype)


def size(entries: Sequence[TensorEntry], metadata: Mapping[str, str]) -> int:
    """Bytes of the file that :func:`write` makes, exact, without touching any data."""
    return len(_head(_in_order(entries), metadata)) + sum(entry.nbytes for entry in entries)


def write(path: Path, entries: Sequence[TensorEntry], metadata: Mapping[str, str]) -> int:
    """Write a file, one tensor at a time, and return its size in bytes.

    The same entries give the same bytes, in whatever order they are given: wide dtypes are stored
    before narrow ones and names in order, so that every tensor is aligned for its dtype; the data
    begins at a multiple of 64 bytes. Use it inside :func:`edgeopt.files.atomic.writing`.

    Raises ValueError for a name given twice, a dtype that the format lacks, and chunks that do not
    add up to the tensor; OSError as writing does.
    """
    ordered = _in_order(entries)
    head = _head(ordered, metadata)
    with path.open("wb") as stream:
        stream.write(head)
        for entry in ordered:
            written = 0
            for chunk in entry.chunks():
                raw = _raw(chunk)
                written += raw.nbytes
                if written > entry.nbytes:
                    break
                stream.write(raw)
            if written != entry.nbytes:
                raise ValueError(
                    f"tensor {entry.name!r}: chunks give {written} bytes or more, "
                    f"{entry.dtype}{list(entry.shape)} takes {entry.nbytes}"
                )
        return stream.tell()


@contextmanager
def filling(
    path: Path, entries: Sequence[TensorEntry], metadata: Mapping[str, str]
) -> Iterator[Callable[[str, ByteChunk], None]]:
    """Write the file of :func:`write` with its tensors filled in side by side.

    ``with filling(...) as put: put(name, chunk)``: each call appends to the tensor of that name.
    For what makes several tensors in one pass (codes and their scales), so that neither has to
    wait in memory for the other. Raises ValueError as :func:`write` does.
    """
    ordered = _in_order(entries)
    head = _head(ordered, metadata)
    begins: dict[str, int] = {}
    ends: dict[str, int] = {}
    position = len(head)
    for entry in ordered:
        begins[entry.name] = position
        position += entry.nbytes
        ends[entry.name] = position
    at = dict(begins)
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(position)

        def put(name: str, chunk: ByteChunk) -> None:
            raw = _raw(chunk)
            if at[name] + raw.nbytes > ends[name]:
                raise ValueError(
                    f"tensor {name!r}: more than the {ends[name] - begins[name]} bytes it takes"
                )
            stream.seek(at[name])
            stream.write(raw)
            at[name] += raw.nbytes

        yield put
        for name, end in ends.items():
            if at[name] != end:
                raise ValueError(f"tensor {name!r}: {end - at[name]} bytes were never given")


def _in_order(entries: Sequence[TensorEntry]) -> list[TensorEntry]:
    return sorted(entries, key=lambda entry: (-DTYPE_BITS.get(entry.dtype, 0), entry.name))


def _head(ordered: Sequence[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Length field and JSON, padded with spaces so that the data begins aligned."""
    header: dict[str, Any] = {}
    position = 0
    for entry in ordered:
        if entry.dtype not in _NAMES:
            raise ValueError(f"tensor {entry.name!r}: safetensors has no dtype {entry.dtype}")
        if entry.name in header or entry.name == _METADATA:
            raise ValueError(f"tensor name {entry.name!r} is taken; give each its own")
        end = position + entry.nbytes
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, end],
        }
        position = end
    whole: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    whole.update(sorted(header.items()))
    text = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise ValueError(f"header of {len(text)} bytes, safetensors allows {MAX_HEADER}")
    return len(text).to_bytes(8, "little") + text


def _raw(chunk: ByteChunk) -> memoryview:
    if isinstance(chunk, np.ndarray):
        return np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
    return memoryview(chunk).cast("B")
