"""From the object a torch file holds to a :class:`~edgeopt.core.Source`: shared by the formats."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import InputSpec, Source, Storage, Weight, tensor_nbytes
from edgeopt.errors import FormatError, SourceError
from edgeopt.files.mapped import Stretch, StridedReader
from edgeopt.files.pickle_nodes import Opaque, StoredBytes
from edgeopt.files.text import one_line
from edgeopt.files.torch_objects import INERT, StorageRef, TensorRef
from edgeopt.files.torch_tree import Leaf, Tree

__all__ = ["Resolve", "TensorMaker", "make_source", "weight_role"]

#: Finds the bytes of a storage that a pickle named.
Resolve = Callable[[StorageRef], Stretch]

#: Names that modules register as buffers, wherever they stand.
BUFFER_NAMES = re.compile(
    r"running_(mean|var)|num_batches_tracked|(position|token_type)_ids|inv_freq|"
    r"(attention|causal)_mask|relative_position_index"
)


def weight_role(name: str, dtype: str, *, buffer: bool = False, parameter: bool = False) -> str:
    """``buffer`` for what is no parameter: by its table, its name, or an integer dtype."""
    if buffer or dtype.startswith(("int", "uint", "bool")):
        return "buffer"
    if not parameter and BUFFER_NAMES.fullmatch(name.rpartition(".")[2]):
        return "buffer"
    return "weight"


@dataclass(frozen=True)
class ArrayReader:
    """Rows of a pickled numpy array, whose bytes lie inside the pickle."""

    data: bytes | StoredBytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool

    def __call__(self, lo: int, hi: int) -> NDArray[Any]:
        count = self.shape[0] if self.shape else 1
        if not 0 <= lo <= hi <= count:
            raise IndexError(f"rows {lo}:{hi} of a tensor with {count} rows")
        try:
            raw = self.data.read() if isinstance(self.data, StoredBytes) else self.data
            flat = np.frombuffer(raw, self.dtype)
            array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        except ValueError as error:
            raise SourceError(f"a pickled numpy array is damaged: {error}") from error
        native = array.astype(self.dtype.newbyteorder("="), copy=False)
        return native[lo:hi] if self.shape else native


class TensorMaker:
    """Makes Weights of the tensors in one pickle; remembers which have no data or are quantized."""

    def __init__(self, path: Path, resolve: Resolve, *, big_endian: bool = False) -> None:
        self.path, self.resolve, self.big_endian = path, resolve, big_endian
        self.quantized: list[str] = []
        self.no_data: list[str] = []
        self._stretches: dict[tuple[Any, ...], Stretch] = {}

    def make(self, name: str, role: str, leaf: Leaf) -> Weight | None:
        """None where the file holds no data for the tensor, or for an array of objects."""
        if isinstance(leaf.node, Opaque):
            return self._array(name, role, leaf.node)
        return self._tensor(name, role, leaf, leaf.node)

    def _tensor(self, name: str, role: str, leaf: Leaf, ref: TensorRef) -> Weight | None:
        if ref.storage is None:
            self.no_data.append(name)
            return None
        if ref.quantized:
            self.quantized.append(name)
        if not role:
            role = weight_role(
                name,
                "" if ref.quantized else ref.dtype,
                buffer=leaf.buffer,
                parameter=ref.parameter or (leaf.in_module and ref.requires_grad),
            )
        stretch = self._stretch(ref.storage)
        # A legacy view is a window on another storage: read through to that one.
        offset = ref.offset + (ref.storage.view[0] if ref.storage.view else 0)
        reader = StridedReader(
            stretch,
            name,
            ref.dtype,
            offset,
            ref.shape,
            ref.stride,
            big_endian=self.big_endian,
            conjugate=ref.conjugate,
            negative=ref.negative,
        )
        storage = Storage(stretch.key, offset * tensor_nbytes((1,), ref.dtype), stretch.nbytes)
        nbytes = tensor_nbytes(ref.shape, ref.dtype)
        return Weight(name, ref.shape, ref.dtype, nbytes, reader, role, storage)

    def _stretch(self, ref: StorageRef) -> Stretch:
        key = (ref.key, ref.dtype, ref.numel, ref.view)
        if key not in self._stretches:
            self._stretches[key] = self.resolve(ref)
        return self._stretches[key]

    def _array(self, name: str, role: str, node: Opaque) -> Weight | None:
        _, shape, dtype, fortran, data = node.state
        code = dtype.args[0] if isinstance(dtype, Opaque) and dtype.args else None
        order = dtype.state[1] if isinstance(dtype, Opaque) and _numpy_state(dtype.state) else "<"
        if (
            not isinstance(code, str)
            or not _NUMPY_CODES.fullmatch(code)
            or order not in ("<", ">", "|")
        ):
            self.no_data.append(name)
            return None
        kind = np.dtype(code).newbyteorder(">" if order == ">" else "<")
        if not isinstance(shape, tuple) or not all(type(d) is int and d >= 0 for d in shape):
            raise FormatError(
                self.path, "a numpy array without a shape", field=one_line(f"array {name}")
            )
        nbytes = math.prod(shape) * kind.itemsize
        whole = isinstance(data, (bytes, StoredBytes)) and len(shape) <= 32
        if not whole or not nbytes <= len(data) <= 2 * nbytes:
            raise FormatError(
                self.path,
                f"a numpy array whose {nbytes} bytes are missing",
                field=one_line(f"array {name}"),
            )
        plain = kind.newbyteorder("=").name
        reader = ArrayReader(data, kind, shape, fortran is True)
        return Weight(name, shape, plain, nbytes, reader, role or weight_role(name, plain))


def _numpy_state(state: Any) -> bool:
    return isinstance(state, tuple) and len(state) > 1 and isinstance(state[1], str)


_NUMPY_CODES = re.compile(r"f[248]|[iu][1248]|b1|c8|c16")


def make_source(
    path: Path,
    tree: Tree,
    maker: TensorMaker,
    *,
    nbytes: int,
    details: Mapping[str, Any],
    foreign: Iterable[str],
    kind: str | None = None,
    inputs: tuple[InputSpec, ...] = (),
    more: tuple[Weight, ...] = (),
) -> Source:
    """The Source of one torch file. Raises SourceError when it holds no tensor at all.

    ``foreign`` are the names that the pickle wanted to call and that were not called; ``more``
    are weights that stand beside the main pickle.
    """
    weights = [w for name, leaf in tree.model if (w := maker.make(name, "", leaf))]
    extras = [w for name, role, leaf in tree.extras if (w := maker.make(name, role, leaf))]
    weights += more
    names = [one_line(name) for name in sorted(set(foreign) - INERT)]
    if not weights and not extras:
        what = " without data" if maker.no_data else ""
        made = f" (it would call {', '.join(names[:3])})" if names else ""
        raise SourceError(f"{path}: holds no tensors{what}{made}; nothing to work on")
    trust = None
    kind = kind or tree.kind
    if kind == "torch-module":
        name = one_line(str(tree.module_class))
        trust = f"it is a pickled {name}: loading it runs code that the file names"
    storages: dict[str, tuple[int, int]] = {}
    for weight in itertools.chain(weights, extras):
        reader = weight.reader
        if isinstance(reader, StridedReader):
            storages[reader.stretch.key] = (reader.stretch.start, reader.stretch.nbytes)
        elif isinstance(reader, ArrayReader):
            storages[f"array {weight.role} {weight.name}"] = (-1, weight.nbytes)
    found = {
        **details,
        "overhead_bytes": max(0, nbytes - sum(size for _, size in storages.values())),
        "prefix": tree.prefix,
        "checkpoint_key": tree.checkpoint_key,
        "module_class": tree.module_class,
        "metadata": tree.metadata,
        "quantized": tuple(maker.quantized),
        "no_data": tuple(maker.no_data),
        "composites": tree.composites,
        "foreign_globals": tuple(names[:50]),
    }
    empty: tuple[Any, ...] = (None, "", (), {})
    return Source(
        path=path,
        kind=kind,
        files=(path,),
        nbytes=nbytes,
        weights=tuple(weights),
        extras=tuple(extras),
        inputs=inputs,
        needs_trust=trust,
        details={key: value for key, value in found.items() if value not in empty},
    )
