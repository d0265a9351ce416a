"""Arrays on disk, or from a user's callable, as rows that are read one at a time."""

from __future__ import annotations

import importlib
import io
import itertools
import lzma
import math
import random
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from edgeopt.core import Array
from edgeopt.core.importing import current_folder
from edgeopt.errors import InputsError

__all__ = [
    "Reader",
    "each_file",
    "open_arrays",
    "open_callable",
    "open_file",
    "open_npy",
    "open_object",
    "zipped",
]

#: What numpy and zipfile raise on a file that is not what it says.
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,  # a size that is true, a name that is no text
    IndexError,
    AttributeError,
    OverflowError,  # sizes beyond 64 bits, or negative
    MemoryError,
    SyntaxError,  # of the header, which is a Python literal
    RuntimeError,  # an encrypted entry
    NotImplementedError,  # a compression that zipfile does not know
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tokenize.TokenError,
)

#: Bytes of one row, or of an array that cannot be read row by row, in memory at a time; more only
#: where the file itself is nearly as large: what is stored in little is little, or made to swell.
_ROW, _SWELLING = 64 << 20, 4


#: What an iterator that is over gives.
_END = object()


@dataclass(frozen=True)
class Reader:
    """``count`` samples; ``rows()`` goes through them, one in memory at a time."""

    count: int
    rows: Callable[[], Iterator[dict[str, Array]]]


def open_file(path: Path) -> Reader:
    """An ``.npz`` or ``.npy`` file, told apart by its first bytes."""
    with path.open("rb") as stream:
        magic = stream.read(6)
    if magic[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _open_npz(path)
    if magic == npy_format.MAGIC_PREFIX:
        return open_npy(path)
    raise InputsError(f"{path} is neither .npz nor .npy; save it with numpy.savez or numpy.save")


def open_npy(path: Path, name: str = "#0") -> Reader:
    """Rows of an ``.npy`` file, mapped, under one name."""
    array = _mapped(path)
    if array.ndim == 0:
        raise InputsError(f"{path} holds a single number; a leading sample axis is needed")

    def rows() -> Iterator[dict[str, Array]]:
        mapped = _mapped(path)
        return ({name: np.array(mapped[i : i + 1])} for i in range(len(mapped)))

    return Reader(len(array), rows)


def each_file(folder: Path, name: str) -> Reader:
    """A folder of ``.npy`` files, in the order of their names: each is one sample."""
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise InputsError(f"{folder} holds no .npy files; give one file a sample")

    def rows() -> Iterator[dict[str, Array]]:
        return ({name: np.array(_mapped(file))} for file in files)

    return Reader(len(files), rows)


def zipped(columns: Mapping[str, Reader], where: Path) -> Reader:
    """Readers of one array each, side by side under the names given."""
    counts = {name: reader.count for name, reader in columns.items()}
    _same_count(counts, where)

    def rows() -> Iterator[dict[str, Array]]:
        streams = [reader.rows() for reader in columns.values()]
        for parts in zip(*streams, strict=True):
            arrays = (next(iter(part.values())) for part in parts)
            yield dict(zip(columns, arrays, strict=True))

    return Reader(next(iter(counts.values())), rows)


def open_callable(spec: str) -> Callable[[], Iterator[dict[str, Array]]]:
    """``module:callable`` from the working directory; each call starts from the beginning.

    An iterable (a list, a torch DataLoader) does as well as a callable that returns one. What it
    draws from the generators of Python, numpy and torch is the same in every pass: what is judged
    is not what was learned from, and every process sees the same.
    """
    module_name, _, attribute = spec.partition(":")
    target = _import(spec, module_name)
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise InputsError(f"--data {spec}: {module_name} has no {attribute!r}")
        target = getattr(target, part)
    return _passes(spec, target)


def open_arrays(value: Any) -> Reader | None:
    """Arrays (or tensors) by input name, or a single one: the leading axis counts samples. None
    where ``value`` is neither."""
    if isinstance(value, Mapping):
        if not value:
            raise InputsError("data holds no arrays; give one an input, by its name")
        arrays = _as_feed(value)
    elif _is_array(value):
        arrays = _as_feed(value)
    else:
        return None
    for name, array in arrays.items():
        if not array.ndim:
            raise InputsError(f"data, {name} is a single number; a leading sample axis is needed")
    _same_count({name: len(array) for name, array in arrays.items()}, "data")
    count = len(next(iter(arrays.values())))

    def rows() -> Iterator[dict[str, Array]]:
        return ({n: np.array(a[i : i + 1]) for n, a in arrays.items()} for i in range(count))

    return Reader(count, rows)


def _is_array(value: Any) -> bool:
    """An array, or what can be seen as one without a copy: a tensor."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array__")


def open_object(spec: str, target: Any) -> Callable[[], Iterator[dict[str, Array]]]:
    """Feeds from an object that a caller holds: a callable, a loader, a data set that is asked by
    number, a list, or a generator, whose feeds are kept as they come for the next pass."""
    if not callable(target) and isinstance(target, Iterator):
        return _passes(spec, Kept(target))
    if not callable(target) and not hasattr(target, "__iter__"):
        return _passes(spec, lambda: (target[i] for i in range(len(target))))
    return _passes(spec, target)


class Kept:
    """What can be gone through once, kept so that it can be gone through again."""

    def __init__(self, once: Iterator[Any]) -> None:
        self._once = once
        self._seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for number in itertools.count():
            if number == len(self._seen):
                item = next(self._once, _END)
                if item is _END:
                    return
                self._seen.append(item)
            yield self._seen[number]


def _passes(spec: str, target: Any) -> Callable[[], Iterator[dict[str, Array]]]:
    def rows() -> Iterator[dict[str, Array]]:
        with _seeded(0):
            produced = _called(spec, target)
            try:
                iterator = iter(produced)
            except TypeError as error:
                raise InputsError(
                    f"--data {spec} gives {type(produced).__name__}; yield dicts, tuples or arrays"
                ) from error
        if produced is target and iterator is target:
            raise InputsError(
                f"--data {spec} is a {type(target).__name__}, which can be gone through once; give "
                "a function that makes it"
            )
        return _drawn(spec, iterator)

    return rows


def _import(spec: str, module_name: str) -> Any:
    with current_folder() as here:
        try:
            return importlib.import_module(module_name)
        except Exception as error:  # the user's own code: it may raise anything
            raise InputsError(
                f"--data {spec}: importing {module_name} from {here} failed:"
                f" {type(error).__name__}: {error}"
            ) from error


def _called(spec: str, target: Any) -> Any:
    if not callable(target):
        return target
    try:
        return target()
    except Exception as error:  # the user's own code: it may raise anything
        raise InputsError(
            f"--data {spec}: calling it without arguments failed: {type(error).__name__}: {error}"
        ) from error


def _drawn(spec: str, iterator: Iterator[Any]) -> Iterator[dict[str, Array]]:
    for number in itertools.count():
        with _seeded(number + 1):
            try:
                item = next(iterator, _END)
            except Exception as error:  # the user's own code: it may raise anything
                raise InputsError(
                    f"--data {spec}: sample {number} failed: {type(error).__name__}: {error}"
                ) from error
        if item is _END:
            return
        yield _as_feed(item)


@contextmanager
def _seeded(number: int) -> Iterator[None]:
    """Generators at one place within the block, and where they stood before after it."""
    torch = sys.modules.get("torch")
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    tensors = None if torch is None else torch.get_rng_state()
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    if torch is not None:
        torch.default_generator.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        if torch is not None and tensors is not None:
            torch.set_rng_state(tensors)


def _as_feed(item: Any) -> dict[str, Array]:
    if isinstance(item, Mapping):
        named = {str(name): value for name, value in item.items()}
    elif isinstance(item, (tuple, list)):
        named = {f"#{i}": value for i, value in enumerate(item)}
    else:
        named = {"#0": item}
    return {name: _as_array(name, value) for name, value in named.items()}


def _as_array(name: str, value: Any) -> Array:
    try:
        # a torch tensor that requires grad, or lies elsewhere, refuses numpy until it is asked so
        tensor = value.detach().cpu() if hasattr(value, "detach") else value
        if str(getattr(tensor, "dtype", "")) == "torch.bfloat16":
            tensor = tensor.float()
        array = np.asarray(tensor)
    except Exception as error:  # what is no array may raise anything
        raise InputsError(
            f"input {name} is given {type(value).__name__}, which is no array: {error}"
        ) from error
    if array.dtype.kind not in "biufU" and array.dtype.name != "bfloat16":
        raise InputsError(f"input {name} is given {array.dtype}; numbers or booleans are needed")
    return array


def _mapped(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _BROKEN as error:
        raise InputsError(_problem(path, error)) from error
    if not isinstance(array, np.ndarray):
        raise InputsError(f"{path} is an archive; an .npy file was expected here")
    _require_sizes(array.shape, path, "the array")
    return _numeric(array, path)


def _numeric(array: Array, where: object) -> Array:
    if array.dtype.kind not in "biufU":
        raise InputsError(f"{where} holds {array.dtype}; numbers or booleans are needed")
    return array


def _problem(where: object, error: Exception) -> str:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return f"{where} holds Python objects, which are never unpickled; save numbers only"
    return f"{where} cannot be read as an array: {error}"


def _same_count(counts: Mapping[str, int], where: object) -> None:
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputsError(f"{where} has arrays of unequal length ({found}); give one row a sample")


# ---------------------------------------------------------------------------------------------
# .npz: its members are read as streams, side by side, so that no array is ever whole in memory


@dataclass(frozen=True)
class _Member:
    """One array of an ``.npz``: its header read, its data not."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


def _open_npz(path: Path) -> Reader:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [_member(archive, info.filename, path) for info in archive.infolist()]
    except _BROKEN as error:
        raise InputsError(_problem(path, error)) from error
    if not members:
        raise InputsError(f"{path} holds no arrays; save one array an input")
    _same_count({m.name: m.shape[0] for m in members}, path)

    def rows() -> Iterator[dict[str, Array]]:
        try:
            with zipfile.ZipFile(path) as archive:
                columns = [_member_rows(archive, m) for m in members]
                for arrays in zip(*columns, strict=True):
                    yield {m.name: a for m, a in zip(members, arrays, strict=True)}
        except _BROKEN as error:
            raise InputsError(_problem(path, error)) from error

    return Reader(members[0].shape[0], rows)


def _member(archive: zipfile.ZipFile, file: str, path: Path) -> _Member:
    name = file.removesuffix(".npy")
    with archive.open(file) as stream:
        shape, fortran, dtype = _header(stream)
        _require_sizes(shape, path, name)
        lacking = stream.tell() + math.prod(shape) * dtype.itemsize
    lacking -= archive.getinfo(file).file_size
    if dtype.kind not in "biufU":
        kind = "Python objects" if dtype.hasobject else str(dtype)
        raise InputsError(f"{path}, {name} holds {kind}; numbers or booleans are needed")
    if not shape:
        raise InputsError(f"{path}, {name} holds a single number; a leading sample axis is needed")
    at_a_time = math.prod(shape if fortran else shape[1:]) * dtype.itemsize
    if at_a_time > max(_ROW, _SWELLING * path.stat().st_size):
        part = "it is in Fortran order, so that all of it" if fortran else "one row"
        raise InputsError(
            f"{path}, {name}: {part} takes {at_a_time:,} bytes, from a file of"
            f" {path.stat().st_size:,}; give one sample a row, in C order"
        )
    if lacking > 0:
        raise InputsError(f"{path}, {name} ends {lacking} bytes early; save it again")
    # numpy calls arrays saved without a name arr_0, arr_1, ...: they are given by position
    position = name.removeprefix("arr_")
    if name != position and position.isdigit():
        name = f"#{position}"
    return _Member(file, name, shape, dtype, fortran)


def _require_sizes(shape: tuple[int, ...], path: Path, name: str) -> None:
    """numpy takes any literal from the header for a size."""
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise InputsError(f"{path}, {name} has the shape {str(shape)[:60]}; save it again")


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    read = (
        npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    )
    shape, fortran, dtype = read(stream)
    return shape, fortran, dtype


def _member_rows(archive: zipfile.ZipFile, member: _Member) -> Iterator[Array]:
    with archive.open(member.file) as stream:
        if member.fortran:  # rows do not lie in a piece
            whole: Array = npy_format.read_array(io.BytesIO(stream.read()), allow_pickle=False)
            yield from (whole[i : i + 1] for i in range(len(whole)))
            return
        _header(stream)
        row = (1, *member.shape[1:])
        nbytes = int(np.prod(row, dtype=np.int64)) * member.dtype.itemsize
        for _ in range(member.shape[0]):
            yield np.frombuffer(_exactly(stream, nbytes), member.dtype).reshape(row)


def _exactly(stream: BinaryIO | Any, nbytes: int) -> bytes:
    data: bytes = stream.read(nbytes)
    if len(data) != nbytes:
        raise EOFError(f"array data ends {nbytes - len(data)} bytes early")
    return data
