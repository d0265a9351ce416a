"""Weights files as an engine: mapping them, and reading every byte. There is nothing to run.

The files are opened through the package's own front door, :func:`edgeopt.load_weights`, which is
what a program that wants arrays calls; numpy suffices for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.runtimes.engine import Case, Feed
from edgeopt.runtimes.smaps import mapped_files
from edgeopt.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["WeightsEngine", "checksum"]

#: Bytes summed at a time: few calls, and no copy of more than this where memory is not aligned.
_PIECE = 1 << 24


class WeightsEngine:
    """A safetensors, torch, GGUF or ONNX file's weights. Options: none.

    ``open`` maps the file and describes its tensors; ``read`` does that and reads every byte of
    them as stored, once, into a checksum. Both are what :meth:`load` does.
    """

    repeats = False

    def __init__(self, case: Case) -> None:
        if case.workload not in ("open", "read"):
            raise UsageError(f"{case.path}: workload {case.workload}; weights are open or read")
        if case.device != "cpu":
            raise UsageError(f"device {case.device}: weights files are only mapped; use cpu")
        self._case = case
        self._open: Callable[[str], Mapping[str, NDArray[Any]]] | None = None
        self._weights: Any = None
        self._read: int | None = None

    def imports(self) -> None:
        from edgeopt.files.weights import load_weights

        self._open = load_weights
        # The reader of the file's format is imported by the first file of it that is opened: that
        # is the library's cost, not this opening's.
        self._open(str(self._case.path))

    def load(self) -> None:
        assert self._open is not None, "imports() comes first"
        self._weights = self._open(str(self._case.path))
        if self._case.workload == "read":
            sums = [checksum(weight.array()) for weight in self._weights.source.weights]
            self._read = sum(sums) % (1 << 64)

    def prepare(self, feed: Feed) -> None:
        """Nothing: there are no inferences to come."""

    def run(self) -> None:
        raise UsageError(f"{self._case.path}: weights are opened, there is nothing in them to run")

    def info(self) -> dict[str, Any]:
        """How many tensors and bytes, of what kind of file, and which files are mapped now.

        ``checksum`` is that of :func:`checksum`, over all tensors; None where none was read.
        """
        case, source = self._case, self._weights.source
        return {
            "runtime": "edgeopt",
            "version": VERSION,
            "device": "cpu",
            "kind": source.kind,
            "workload": case.workload,
            "tensors": len(source.weights),
            "bytes": sum(weight.nbytes for weight in source.weights),
            "checksum": self._read,
            "mapped": mapped_files(case.files, case.path.parent),
        }


def checksum(array: NDArray[Any]) -> int:
    """The sum modulo 2^64 of the array's bytes taken as little-endian 64-bit words, the last one
    filled up with zeros."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = raw.size - raw.size % 8
    total = sum(
        int(raw[start : min(start + _PIECE, whole)].view("<u8").sum(dtype=np.uint64))
        for start in range(0, whole, _PIECE)
    )
    return (total + int.from_bytes(raw[whole:].tobytes(), "little")) % (1 << 64)
