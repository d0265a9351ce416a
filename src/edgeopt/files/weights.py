"""The weights of any model file as a mapping of arrays, read when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import DTYPE_BITS, Source, Weight, format_bytes
from edgeopt.core.calls import checked
from edgeopt.errors import MissingExtraError, SourceError
from edgeopt.files import packed
from edgeopt.files.open import open_source
from edgeopt.files.reading import PrivateMaps
from edgeopt.numerics import ggml

__all__ = ["Weights", "load_weights", "logical_weights"]


class Weights(Mapping[str, NDArray[Any]]):
    """Tensors by name. Reading one maps it from its file, or dequantizes it; nothing is cached.

    Arrays are read-only. A plain tensor's array is a view of the mapped file (MAP_SHARED: processes
    that read the same file have its pages once); bfloat16 stays bfloat16. A quantized one's is made
    anew at each access: in the dtype it had before, or float32 for GGUF's block types.

    There is nothing to close: the mapping lives as long as this object or any array from it, and
    ends with the last of them. Each access looks whether the file is still the one that was opened,
    and raises SourceError where it has been written to or cut short. Replacing it (a new file under
    the same name) is no harm: arrays keep showing the old one. What no access can catch is a file
    that is cut short while an array is being read: the system ends the process.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._private = PrivateMaps()
        self._weights = {weight.name: weight for weight in logical_weights(source)}

    def __getitem__(self, name: str) -> NDArray[Any]:
        array = self._read(name)
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        return array

    def writable(self, name: str) -> NDArray[Any]:
        """Like ``self[name]``, to write to: changed pages become copies of this process's own.

        Those that are not written to stay shared, and the file stays as it is.
        """
        array = self._read(name)
        return array if array.flags.writeable else self._private.writable(array)

    def _read(self, name: str) -> NDArray[Any]:
        weight = self._weights[name]
        return weight.array() if weight.dtype in DTYPE_BITS else self._decoded(weight)

    def _decoded(self, weight: Weight) -> NDArray[np.float32]:
        """A tensor of a GGUF block type."""
        raw = weight.array()
        columns = weight.shape[-1]
        if not weight.size:
            return np.zeros(weight.shape, np.float32)
        raw = raw.reshape(-1, raw.shape[-1])
        if weight.dtype in ggml.decodes():
            return ggml.decode(weight.dtype, raw, columns).reshape(weight.shape)
        try:
            from gguf import GGMLQuantizationType, quants
        except ImportError as error:
            raise MissingExtraError(
                "gguf", "gguf", f"{self.source.path}: decoding {weight.name!r} ({weight.dtype})"
            ) from error
        try:
            values = quants.dequantize(raw, GGMLQuantizationType[weight.dtype])
        except (KeyError, NotImplementedError) as error:
            raise SourceError(
                f"{self.source.path}: tensor {weight.name!r} is stored as {weight.dtype}, which "
                f"has no decoder here; {', '.join(ggml.decodes())} have one"
            ) from error
        decoded: NDArray[np.float32] = values.reshape(weight.shape)
        return decoded

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


@checked
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
