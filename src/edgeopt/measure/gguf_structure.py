"""The job of reading a GGUF file with gguf-py, a reader that shares nothing with ours."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import FormatError
from edgeopt.measure.process import Feeds
from edgeopt.measure.reporter import Reporter

__all__ = ["structure"]


def structure(
    job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Reporter
) -> dict[str, Any]:
    """Names, shapes, types, places and metadata of a GGUF file as gguf-py reads them.

    Metadata values are digests of the bytes in the file: of numbers, or of each string with its
    length before it.
    """
    voice.busy("artifact", f"reading {job['artifact']} with gguf-py")
    try:
        reader = _reader()(job["artifact"])
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        # what gguf-py raises on a file that breaks the format
        reason = " ".join(str(error).split())[:200]
        raise FormatError(job["artifact"], f"gguf-py cannot read it: {reason}") from error
    return {
        "tensors": [
            [
                tensor.name,
                [int(n) for n in reversed(tensor.shape)],
                tensor.tensor_type.name,
                int(tensor.data_offset),
                int(tensor.n_bytes),
            ]
            for tensor in reader.tensors
        ],
        "metadata": {
            name: _metadata(field)
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")  # its own count of versions and entries
        },
    }


def _metadata(field: Any) -> dict[str, Any]:
    """Type, element type, count and digest of one of gguf-py's fields."""
    kinds = [kind.name.lower() for kind in field.types]
    # Of an array: the key's length, the key, two types, the count.
    count = int(field.parts[4][0]) if kinds[0] == "array" else 1
    parts = (field.parts[index] for index in field.data)
    whole = count != len(field.data)  # one part for all elements: see _reader
    return {
        "type": kinds[0],
        "of": kinds[1] if len(kinds) > 1 else "",
        "count": count,
        "sha256": _digest(
            (part.tobytes() for part in parts), lengths=kinds[-1] == "string" and not whole
        ),
    }


def _digest(parts: Iterable[bytes], *, lengths: bool) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if lengths:
            digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.hexdigest()


def _reader() -> Any:
    """gguf-py's reader, with the elements of long arrays left together.

    It makes several numpy arrays of every string and number: 650 MB for a vocabulary of 128,000
    and its merges.
    """
    from gguf import GGUFReader, GGUFValueType

    plain = GGUFReader._get_field_parts

    def parts(self: Any, at: int, kind: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if kind == GGUFValueType.ARRAY:
            of, count = self._get(at, np.uint32), self._get(at + 4, np.uint64)
            if of[0] != GGUFValueType.ARRAY and count[0] > 1:
                element = GGUFValueType(of[0])
                values = together(self, at + 12, element, int(count[0]))
                return 12 + len(values), [of, count, values], [2], [GGUFValueType.ARRAY, element]
        found: tuple[int, list[Any], list[int], list[Any]] = plain(self, at, kind)
        return found

    def together(self: Any, at: int, element: Any, count: int) -> Any:
        if element == GGUFValueType.STRING:
            nbytes = _strings_bytes(self.data, at, count)
        else:
            nbytes = count * np.dtype(self.gguf_scalar_to_np[element]).itemsize
        values = self._get(at, np.uint8, nbytes)
        if len(values) != nbytes:
            raise ValueError(f"an array of {count} reaches past the end of the file")
        return values

    return type("SparingReader", (GGUFReader,), {"_get_field_parts": parts})


def _strings_bytes(data: Any, start: int, count: int) -> int:
    """Bytes that ``count`` strings take, their lengths included. struct.error past the end."""
    length_at, at = struct.Struct("<Q").unpack_from, start
    for _ in range(count):
        at += 8 + length_at(data, at)[0]
    return at - start
