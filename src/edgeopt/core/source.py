"""What was handed over, described before any tensor is read."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.core.dtypes import FLOAT_DTYPES, Array

__all__ = [
    "InputSpec",
    "Source",
    "Storage",
    "Weight",
    "file_sha256",
    "shown_shape",
    "symbolic",
    "unnamed",
]


@dataclass(frozen=True)
class Storage:
    """The stored bytes behind a tensor: two tensors with equal keys share them.

    ``offset`` is where the tensor begins inside the storage, in bytes; ``nbytes`` is the size of
    the whole storage, which is larger than the tensor's own when the tensor is a view of a part.
    """

    key: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Weight:
    """One tensor, known before it is read.

    ``dtype`` is numpy's name (plus ``bfloat16``, ``float8_*``, ``int4`` and the like), or the
    official name of a GGUF block type (``Q4_K``). ``role`` says what the tensor is there for:
    ``weight`` (a parameter), ``buffer`` (running statistics, position ids), ``optimizer``,
    ``ema`` (an averaged copy) or ``other``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    reader: Callable[[int, int], Array] = field(repr=False, compare=False)
    role: str = "weight"
    storage: Storage | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOAT_DTYPES

    def rows(self, lo: int, hi: int) -> Array:
        """Rows ``lo:hi`` along the first axis, mapped or streamed, never cached.

        A 0-dim tensor has one row, itself: ``rows(0, 1)`` has shape ``()``.
        """
        return self.reader(lo, hi)

    def array(self) -> Array:
        """The whole tensor."""
        return self.reader(0, self.shape[0] if self.shape else 1)


_MADE_UP = re.compile(r"unk__\d+")


def unnamed(name: str, axis: int) -> str:
    """The symbol of a free dimension without a name: its own, for no two of those are the same."""
    return f"?{name}.{axis}"


def symbolic(dim: int | str | None, name: str, axis: int) -> int | str:
    """A dimension as ONNX or its runtime has it: free without a name where it is None, negative,
    or called by a name that the runtime made up (``unk__3``)."""
    free = dim is None or (dim < 0 if isinstance(dim, int) else bool(_MADE_UP.fullmatch(dim)))
    return unnamed(name, axis) if free or dim is None else dim


def shown_shape(shape: Iterable[int | str]) -> list[int | str]:
    """A shape as a person and a document have it: free dimensions without a name are ``?``."""
    return ["?" if isinstance(dim, str) and dim.startswith("?") else dim for dim in shape]


@dataclass(frozen=True)
class InputSpec:
    """What a model takes (or gives): name, numpy dtype, shape with symbols for free dimensions.

    Dimensions of one symbol have one size, in all inputs; one that the file gives no name has a
    symbol of its own (:func:`unnamed`).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, shown_shape(self.shape)))}]"


@dataclass(frozen=True)
class Source:
    """What the user handed over, described before any tensor is read.

    ``kind`` is one of ``torch-state-dict``, ``torch-checkpoint``, ``torch-module``,
    ``torchscript``, ``torch-exported`` (``.pt2``), ``safetensors``, ``onnx``, ``gguf`` and
    ``hf-folder``. ``weights`` are the model's own tensors; ``extras`` everything else the files
    carry (optimizer state, averaged copies, ...), told apart by ``Weight.role``.
    ``needs_trust`` is None, or why loading the model (not: inspecting it) runs code it carries.
    """

    path: Path
    kind: str
    files: tuple[Path, ...]
    nbytes: int
    weights: tuple[Weight, ...]
    extras: tuple[Weight, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    needs_trust: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def sha256(self, between: Callable[[], None] | None = None) -> str:
        """Digest of all its files' bytes, in the order of their relative names.

        For one file this is what ``sha256sum`` prints. For several, each file's relative name
        and digest are hashed in turn. ``between`` is called after every piece: what it raises
        ends the reading.
        """
        if len(self.files) == 1:
            return file_sha256(self.files[0], between)
        whole = hashlib.sha256()
        root = self.path if self.path.is_dir() else self.path.parent
        for file in sorted(self.files):
            try:
                name = file.relative_to(root).as_posix()
            except ValueError:
                name = file.name
            whole.update(f"{name}\0{file_sha256(file, between)}\n".encode())
        return whole.hexdigest()


def file_sha256(path: Path, between: Callable[[], None] | None = None) -> str:
    """What ``sha256sum`` prints for a file, read a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            if between is not None:
                between()
    return digest.hexdigest()
