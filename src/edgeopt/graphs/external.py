"""Large weights in a file beside the model, where the runtime maps them.

An ONNX file is one protobuf: to open it, a runtime parses all of it into memory and copies every
weight once more. External data (https://onnx.ai/onnx/repo-docs/ExternalData.html) lies in a file of
its own, and ONNX Runtime's CPU provider maps it: a weight that no kernel rearranges is never
copied, and its pages can be dropped and shared. ``docs/external-data.md`` has figures.

Offsets are a matter of the page size: 4 KiB on x86-64, 16 KiB on Apple's and the Raspberry Pi's
ARM kernels, 64 KiB on others and as Windows' granularity. Today's runtime rounds an offset down to
a page by itself; a tensor that starts on one shares no page with its neighbour, is aligned for
every vector unit, and suits runtimes that insist. So a tensor begins at a multiple of 64 KiB where
that costs at most a sixteenth of it, else at a multiple of 4 KiB.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import onnx_ir as ir

from edgeopt.core import format_bytes
from edgeopt.errors import OutputError
from edgeopt.graphs.capture.limits import EXTERNAL_OVER

__all__ = ["INLINE_UNDER", "OVER", "data_path", "files_nbytes", "save", "written_nbytes"]

#: Bytes of weights over which they get a file of their own, where nobody asks otherwise.
OVER: Final = 256 << 20

#: A tensor of fewer bytes stays in the model, where a reader has it at once.
INLINE_UNDER: Final = 1 << 16

#: Bytes of a tensor from which on -> what its offset is a multiple of; the first that fits.
_ALIGNMENTS: Final = ((1 << 20, 1 << 16), (INLINE_UNDER, 1 << 12))

_CHUNK = 16 << 20


def data_path(path: Path) -> Path:
    """The file beside a model that its weights go to: ``m.onnx`` -> ``m.onnx.data``."""
    return path.with_name(f"{path.name}.data")


def files_nbytes(path: Path) -> int:
    """Bytes of a file that :func:`save` wrote, and of the one beside it if there is one."""
    beside = data_path(path)
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def save(model: ir.Model, path: Path, over: int | None = OVER) -> None:
    """Write ``model`` to ``path``, and its large weights to :func:`data_path` where all of its
    weights are more than ``over`` bytes (None: never).

    The model names that file by its name alone: the two can be moved together, and not be renamed.
    Tensors lie there in the graph's order, streamed one by one, and each one's array is let go
    once it is written. Raises OutputError, before anything is written, where what stays in the
    model is more than one ONNX file holds.
    """
    beside = _placed(model, over)
    held = _held(model, beside)
    inside = sum(int(value.const_value.nbytes) for value in held if value.const_value)
    if inside > EXTERNAL_OVER:
        raise OutputError(
            f"the file would be {format_bytes(inside)}, and one ONNX file ends at 2 GB; use"
            " --external-data auto, or fewer bits"
        )
    if beside:
        with data_path(path).open("wb") as stream:
            for value, offset in beside:
                _write(stream, value, offset)
                _point(value, offset, data_path(path).name)
    _take_in(held)
    ir.save(model, path)


def written_nbytes(model: ir.Model, name: str, over: int | None = OVER) -> int:
    """Bytes of the file or files that :func:`save` would write under ``name``, to the byte.

    Nothing is written; the model is of no use afterwards.
    """
    beside = _placed(model, over)
    held = _held(model, beside)
    end = 0
    for value, offset in beside:
        end = offset + _point(value, offset, data_path(Path(name)).name)
    _take_in(held)
    return end + int(ir.to_proto(model).ByteSize())


def _placed(model: ir.Model, over: int | None) -> list[tuple[ir.Value, int]]:
    """The tensors that go beside the model, and the offset of each; none where nothing should."""
    tensors = [(v, v.const_value) for v in model.graph.initializers.values() if v.const_value]
    if over is None or sum(int(tensor.nbytes) for _, tensor in tensors) <= over:
        return []
    placed = []
    end = 0
    for value, tensor in tensors:
        nbytes = int(tensor.nbytes)
        step = next((step for least, step in _ALIGNMENTS if nbytes >= least), None)
        if step is not None and tensor.dtype != ir.DataType.STRING:
            offset = -(-end // step) * step
            placed.append((value, offset))
            end = offset + nbytes
    return placed


def _held(model: ir.Model, beside: list[tuple[ir.Value, int]]) -> list[ir.Value]:
    """The values whose tensors stay in the model."""
    away = {value for value, _ in beside}
    return [value for value in model.graph.initializers.values() if value not in away]


def _take_in(values: list[ir.Value]) -> None:
    """Make tensors that lie in the folded graph's own file part of this one."""
    for value in values:
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


def _point(value: ir.Value, offset: int, location: str) -> int:
    """Let ``value`` stand for bytes of the data file; how many."""
    tensor = value.const_value
    assert tensor is not None
    nbytes = int(tensor.nbytes)
    value.const_value = ir.ExternalTensor(
        location, offset, nbytes, tensor.dtype, shape=tensor.shape, name=value.name or ""
    )
    return nbytes


def _write(stream: BinaryIO, value: ir.Value, offset: int) -> None:
    tensor = value.const_value
    assert tensor is not None
    stream.write(b"\0" * (offset - stream.tell()))
    if tensor.dtype.bitwidth < 8:
        stream.write(tensor.tobytes())  # packed; its array has a byte a value
        return
    # numpy's own tofile does not say why a disk refuses.
    flat = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    for lo in range(0, flat.size, _CHUNK):
        stream.write(flat[lo : lo + _CHUNK].data)
