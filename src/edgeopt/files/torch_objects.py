"""What torch's pickles are made of: the short list of names that are understood, as data.

:func:`build` is the allow-list of :func:`edgeopt.files.torch_pickle.read_pickle`: it turns the
constructors of tensors into :class:`TensorRef` descriptions and those of plain containers into
plain containers. It imports nothing that a file names.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeopt.core import DTYPE_BITS
from edgeopt.files.pickle_nodes import BadObject, Global, Opaque, StoredBytes

__all__ = [
    "INERT",
    "STORAGE_DTYPES",
    "Composite",
    "StorageRef",
    "TensorRef",
    "build",
    "storage_ref",
]

#: torch's typed storages, by numpy's name of their elements. Quantized ones hold the codes.
STORAGE_DTYPES: Mapping[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "UntypedStorage": "uint8",
    # codes of 4 and 2 bits, packed into bytes
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
}

#: torch's dtypes, by numpy's names.
TORCH_DTYPES: Mapping[str, str] = {
    **{f"torch.{name}": name for name, bits in DTYPE_BITS.items() if bits >= 8},
    "torch.float": "float32",
    "torch.double": "float64",
    "torch.half": "float16",
    "torch.long": "int64",
    "torch.int": "int32",
    "torch.short": "int16",
    "torch.cfloat": "complex64",
    "torch.cdouble": "complex128",
    "torch.qint8": "int8",
    "torch.quint8": "uint8",
    "torch.qint32": "int32",
    # two 4-bit floats in a byte
    "torch.float4_e2m1fn_x2": "uint8",
}

MAX_RANK = 32  # numpy 1's limit; torch's own is 64


@dataclass(frozen=True, eq=False, slots=True)
class StorageRef:
    """A storage as the pickle names it. ``view`` is (offset, size) in elements of a legacy view."""

    key: str
    dtype: str
    numel: int
    view: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """A tensor as the pickle describes it: offset and strides in elements.

    ``storage`` None means that the file has no data for it (the meta device).
    """

    storage: StorageRef | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool = False
    parameter: bool = False
    quantized: bool = False
    conjugate: bool = False
    negative: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Composite:
    """A tensor made of tensors: sparse, nested, or a subclass with inner tensors."""

    layout: str
    parts: dict[str, Any]
    shape: tuple[int, ...] | None = None


def storage_ref(pid: Any) -> StorageRef:
    """The storage behind a persistent id ``("storage", type, key, location, numel[, view])``."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or _text(pid[0]) != "storage":
        raise BadObject("a persistent id that names no storage")
    kind, key, numel = pid[1], _text(pid[2]), pid[4]
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
    if name not in STORAGE_DTYPES or not kind.name.startswith("torch."):
        raise BadObject(f"storage type {name or 'unknown'} is not one that torch has")
    if key is None or not _count(numel):
        raise BadObject("a storage without a key or with no size")
    view = None
    if len(pid) == 6 and pid[5] is not None:
        meta = pid[5]
        if not isinstance(meta, tuple) or len(meta) != 3 or not all(map(_count, meta[1:])):
            raise BadObject("a storage view without offset and size")
        view = (meta[1], meta[2])
    return StorageRef(key, STORAGE_DTYPES[name], numel, view)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _dims(value: Any) -> tuple[int, ...]:
    if isinstance(value, (tuple, list)) and len(value) > MAX_RANK:
        raise BadObject(f"a tensor of {len(value)} dimensions, the limit is {MAX_RANK}")
    if not isinstance(value, (tuple, list)) or not all(map(_count, value)):
        raise BadObject("a shape or stride that is no list of sizes")
    return tuple(value)


def _dtype(value: Any) -> str:
    name = value.name if isinstance(value, Global) else ""
    if name not in TORCH_DTYPES:
        raise BadObject(f"dtype {name or 'unknown'} is not one that edgeopt reads")
    return TORCH_DTYPES[name]


def _need(args: tuple[Any, ...], count: int) -> None:
    if len(args) < count:
        raise BadObject(f"a tensor constructor with {len(args)} arguments, {count} are needed")


def _tensor(args: tuple[Any, ...], dtype: str | None = None, meta: Any = None) -> TensorRef:
    _need(args, 4)
    storage, offset, shape, stride = args[0], args[1], _dims(args[2]), _dims(args[3])
    if not isinstance(storage, StorageRef):
        raise BadObject("a tensor whose storage is none")
    if not _count(offset) or len(shape) != len(stride):
        raise BadObject("a tensor whose offset, shape and stride do not fit one another")
    flags = meta if isinstance(meta, dict) else {}
    return TensorRef(
        storage,
        dtype or storage.dtype,
        offset,
        shape,
        stride,
        requires_grad=len(args) > 4 and args[4] is True,
        conjugate=flags.get("conj") is True,
        negative=flags.get("neg") is True,
    )


def _tensor_v2(args: tuple[Any, ...]) -> TensorRef:
    return _tensor(args, meta=args[6] if len(args) > 6 else None)


def _tensor_v3(args: tuple[Any, ...]) -> TensorRef:
    _need(args, 7)
    return _tensor(args, _dtype(args[6]), args[7] if len(args) > 7 else None)


def _quantized(args: tuple[Any, ...]) -> TensorRef:
    return dataclasses.replace(_tensor(args[:4]), quantized=True)


def _meta(args: tuple[Any, ...]) -> TensorRef:
    _need(args, 3)
    return TensorRef(None, _dtype(args[0]), 0, _dims(args[1]), _dims(args[2]))


def _parameter(args: tuple[Any, ...]) -> Any:
    _need(args, 1)
    data = args[0]
    if isinstance(data, TensorRef):
        return dataclasses.replace(data, parameter=True)
    return data


_SPARSE_PARTS = {
    "torch.sparse_coo": ("indices", "values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


def _sparse(args: tuple[Any, ...]) -> Composite:
    _need(args, 2)
    layout, data = args[0], args[1]
    names = _SPARSE_PARTS.get(layout) if isinstance(layout, str) else None
    if names is None or not isinstance(data, tuple) or len(data) <= len(names):
        raise BadObject("a sparse tensor of unknown layout")
    return Composite(layout, dict(zip(names, data, strict=False)), _dims(data[len(names)]))


def _nested(args: tuple[Any, ...]) -> Composite:
    names = ("values", "sizes", "strides", "offsets")
    _need(args, 4)
    return Composite("torch.nested", dict(zip(names, args, strict=False)))


_PLAIN_TENSORS = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"} | {
    "torch.nn.Parameter",
    "torch.nn.parameter.Buffer",
}


def _from_type(args: tuple[Any, ...]) -> Any:
    """``_rebuild_from_type_v2(function, type, args, state)``: a tensor with attributes."""
    _need(args, 3)
    function, kind, inner = args[0], args[1], args[2]
    if not isinstance(function, Global) or not isinstance(inner, tuple):
        return NotImplemented
    # Only the constructors of tensors: a function may not come back here for another round.
    made = _TENSORS[function.name](inner) if function.name in _TENSORS else NotImplemented
    if made is NotImplemented or not isinstance(kind, Global) or kind.name in _PLAIN_TENSORS:
        return made
    state = args[3] if len(args) > 3 else None
    parts = {"data": made, **(state if isinstance(state, dict) else {})}
    return made if state is None else Composite(kind.name, parts)


def _dict(args: tuple[Any, ...]) -> Any:
    pairs = args[0] if args else []
    if isinstance(pairs, dict):
        return dict(pairs)
    if not isinstance(pairs, (list, tuple)):
        return NotImplemented
    made: dict[str, Any] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
            return NotImplemented
        made[pair[0]] = pair[1]
    return made


def _list(args: tuple[Any, ...]) -> Any:
    if not args:
        return []
    return list(args[0]) if isinstance(args[0], (list, tuple)) else NotImplemented


def _tuple(args: tuple[Any, ...]) -> Any:
    made = _list(args)
    return made if made is NotImplemented else tuple(made)


def _first(args: tuple[Any, ...]) -> Any:
    return args[0] if args and isinstance(args[0], (str, TensorRef, Opaque)) else NotImplemented


def _instance(args: tuple[Any, ...]) -> Any:
    """``copyreg._reconstructor(cls, object, None)``: protocol 1's way to make an instance."""
    return Opaque(args[0].name) if args and isinstance(args[0], Global) else NotImplemented


def _encode(args: tuple[Any, ...]) -> Any:
    """``_codecs.encode(text, "latin1")``: how protocol 2 carries bytes."""
    if len(args) != 2 or args[1] not in ("latin1", "latin-1"):
        return NotImplemented
    text = args[0]
    if isinstance(text, StoredBytes):
        made = StoredBytes(text.buffer, text.start, text.end, text=False)
        made.latin1 = True
        return made
    try:
        return text.encode("latin-1") if isinstance(text, str) else NotImplemented
    except UnicodeEncodeError as error:
        raise BadObject("bytes that are no bytes") from error


_SCALARS = {
    "f8": "<d", "f4": "<f", "f2": "<e", "b1": "<?",
    "i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b",
    "u8": "<Q", "u4": "<I", "u2": "<H", "u1": "<B",
}  # fmt: skip


def _numpy_scalar(args: tuple[Any, ...]) -> Any:
    """``numpy.core.multiarray.scalar(dtype, bytes)``, little-endian numbers only."""
    if len(args) != 2 or not isinstance(args[0], Opaque) or not isinstance(args[1], bytes):
        return NotImplemented
    code = args[0].args[0] if args[0].args else None
    form = _SCALARS.get(code) if isinstance(code, str) else None
    if form is None or len(args[1]) != struct.calcsize(form):
        return NotImplemented
    return struct.unpack(form, args[1])[0]


_Builder = Callable[[tuple[Any, ...]], Any]

_TENSORS: Mapping[str, _Builder] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_xla_tensor": _first,
}

_KNOWN: Mapping[str, _Builder] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _tuple,
    "torch.device": _first,
    "torch.serialization._get_layout": _first,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda args: _dict(args[1:]),
    "builtins.dict": _dict,
    "builtins.list": _list,
    "builtins.set": _list,
    "builtins.tuple": _tuple,
    "builtins.frozenset": _tuple,
    "builtins.bytes": lambda args: NotImplemented if args else b"",
    "copyreg._reconstructor": _instance,
    "_codecs.encode": _encode,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}

#: Known, harmless, and kept as they are: no need to tell the user about them.
INERT = frozenset(
    {
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
    }
)


def build(name: str, args: tuple[Any, ...]) -> Any:
    """What calling ``name(*args)`` stands for, or NotImplemented when it is not on the list."""
    known = _KNOWN.get(name)
    return known(args) if known else NotImplemented
