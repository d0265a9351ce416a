"""The weights of any model file as a mapping of arrays, read when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from edgeopt.core import DTYPE_BITS, Source, Weight, format_bytes
from edgeopt.errors import SourceError
from edgeopt.files import packed
from edgeopt.files.open import open_source

__all__ = ["Weights", "load_weights", "logical_weights"]


class Weights(Mapping[str, NDArray[Any]]):
    """Tensors by name. Reading one maps it from its file, or dequantizes it; nothing is cached.

    Arrays are read-only. A plain tensor's array is a view of the mapped file and keeps the mapping
    alive; a quantized one's is made anew at each access, in the dtype it had before.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._weights = {weight.name: weight for weight in logical_weights(source)}

    def __getitem__(self, name: str) -> NDArray[Any]:
        weight = self._weights[name]
        if weight.dtype not in DTYPE_BITS:
            raise SourceError(
                f"{self.source.path}: tensor {name!r} is stored as {weight.dtype}, a GGUF block "
                "type that load_weights does not decode; plain types can be read"
            )
        array = weight.array()
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __repr__(self) -> str:
        return f"<{len(self)} tensors, {format_bytes(self.nbytes)}, of {str(self.source.path)!r}>"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors once read: quantized ones at their dequantized size."""
        return sum(weight.nbytes for weight in self._weights.values())

    def describe(self, name: str) -> Weight:
        """Shape, dtype and size of a tensor, and its rows, without reading all of it."""
        return self._weights[name]


def load_weights(path: str | os.PathLike[str]) -> Weights:
    """The weights in a model file of any known format; packed ones dequantized on access.

    Runs no code that the file carries and loads nothing before it is asked for. Raises SourceError
    for what is no model, and FormatError for a broken file.
    """
    return Weights(open_source(path))


def logical_weights(source: Source) -> tuple[Weight, ...]:
    """The model's tensors under their own names: a packed file's parts put together."""
    if source.kind == "safetensors" and packed.is_packed(source.details["metadata"]):
        return packed.unpack(source)
    return source.weights
