"""From stored codes to something a kernel takes, by nodes that the runtime computes at load.

ONNX Runtime folds a chain of nodes that depends on initializers alone when a session opens, so the
file carries few bits and the kernels see the type they are fastest with. ``DequantizeLinear`` is
left out on purpose: the runtime keeps it for its own patterns and does not fold it on weights of
convolutions and recurrent layers, where it ran 1.2 to 3 times slower than FP32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.core import Affine, Codes
from edgeopt.graphs.forms.build import Builder
from edgeopt.numerics.affine import dequantize
from edgeopt.numerics.pack import pack_flat

__all__ = ["block_for", "float_view", "int8_chain", "int8_codes", "int8_view", "row_scale"]

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float64": ir.DataType.DOUBLE,
}


def block_for(columns: int, wanted: int) -> int | None:
    """A block size near ``wanted`` that divides ``columns``; None: one scale a row.

    Chains of standard operators reshape codes into blocks, so blocks must divide the row: the
    largest divisor from ``wanted / 4`` to ``wanted``, else the smallest up to ``4 * wanted``,
    else the whole row. A row under twice the size is halved, or stays whole.
    """
    if columns <= wanted:
        return None
    if columns % wanted == 0:
        return wanted
    if columns < 2 * wanted:
        halves = columns // 2 if columns % 2 == 0 else None
        return halves if halves is not None and halves >= wanted // 2 else None
    for block in range(wanted, max(wanted // 4, 8) - 1, -1):
        if columns % block == 0:
            return block
    for block in range(wanted + 1, min(4 * wanted, columns // 2) + 1):
        if columns % block == 0:
            return block
    return None


@dataclass(frozen=True)
class _BlockLayout:
    """How a matrix [rows, columns] in blocks is laid out in the file.

    Row major: codes [rows, blocks, block]. By column: [blocks, block, rows], so that a reshape
    gives the transpose without moving data at load.
    """

    rows: int
    columns: int
    blocks: int
    by_column: bool

    def codes(self, q: NDArray[np.generic]) -> NDArray[np.generic]:
        blocked = q.reshape(self.rows, self.blocks, self.columns // self.blocks)
        return blocked.transpose(1, 2, 0) if self.by_column else blocked

    def scales(self, scale: NDArray[np.generic]) -> NDArray[np.generic]:
        return scale.T[:, None, :] if self.by_column else scale[:, :, None]


def _unpacked(
    b: Builder,
    name: str,
    codes: Codes,
    scheme: Affine,
    layout: _BlockLayout,
    scales: NDArray[np.generic],
) -> ir.Value:
    """float32 weights in blocks, codes times ``scales`` [rows, blocks]: Cast -> (Sub) -> Mul."""
    q = np.ascontiguousarray(layout.codes(codes.q))
    scale = np.ascontiguousarray(layout.scales(scales)).astype(scheme.scale)
    if scheme.bits == 4:
        dtype = ir.DataType.INT4 if scheme.symmetric else ir.DataType.UINT4
        stored = b.packed(f"{name}.codes", pack_flat(q), dtype, q.shape)
    else:
        stored = b.constant(f"{name}.codes", q)
    value = b.at_load("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{name}.unpacked")
    if codes.zero is not None:
        zero = np.ascontiguousarray(layout.scales(codes.zero))
        if scheme.bits == 4:
            stored_zero = b.packed(f"{name}.zero", pack_flat(zero), ir.DataType.UINT4, zero.shape)
        else:
            stored_zero = b.constant(f"{name}.zero", zero)
        as_float = b.at_load(
            "Cast", [stored_zero], {"to": ir.DataType.FLOAT}, name=f"{name}.zero.unpacked"
        )
        value = b.at_load("Sub", [value, as_float], name=f"{name}.centred")
    factor = b.constant(f"{name}.scale", scale)
    if scheme.scale != "float32":
        factor = b.at_load(
            "Cast", [factor], {"to": ir.DataType.FLOAT}, name=f"{name}.scale.unpacked"
        )
    return b.at_load("Mul", [value, factor], name=f"{name}.blocks")


def float_view(
    b: Builder,
    name: str,
    codes: Codes,
    scheme: Affine,
    *,
    shape: tuple[int, ...],
    by_column: bool,
    dtype: str,
) -> ir.Value:
    """The tensor in its own shape and dtype, expanded when the session loads."""
    rows, blocks = codes.scale.shape
    columns = codes.q.shape[1]
    layout = _BlockLayout(rows, columns, blocks, by_column)
    value = _unpacked(b, name, codes, scheme, layout, codes.scale)
    target = b.constant(f"{name}.shape", np.array(shape, np.int64))
    value = b.at_load("Reshape", [value, target], name=f"{name}.expanded")
    if dtype != "float32":
        value = b.at_load("Cast", [value], {"to": _DTYPES[dtype]}, name=f"{name}.cast")
    return value


def _is_direct(codes: Codes, scheme: Affine) -> bool:
    """8-bit codes with one scale a row are what the kernels take, as they stand."""
    return scheme.bits == 8 and codes.scale.shape[1] == 1 and codes.zero is None


def row_scale(codes: Codes, scheme: Affine) -> NDArray[np.float32]:
    """The int8 scale of every row, float32 [rows]: the row's largest decoded weight over 127."""
    if _is_direct(codes, scheme):
        return codes.scale[:, 0]
    rows, columns = codes.q.shape
    block = None if codes.scale.shape[1] == 1 else columns // codes.scale.shape[1]
    peak = np.abs(dequantize(codes, block, columns)).max(axis=1) if columns else np.zeros(rows)
    scale: NDArray[np.float32] = np.where(peak > 0, peak / 127, 1).astype(np.float32)
    return scale


def _steps(codes: Codes, scheme: Affine, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """int8 steps that one 4-bit step is worth, [rows, blocks], as stored (float16)."""
    relative = codes.scale / scale[:, None]
    return relative.astype(scheme.scale).astype(np.float32)


def int8_codes(
    codes: Codes, scheme: Affine, scale: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """What :func:`int8_view` becomes at load: codes [rows, columns] and the scale of each row.

    ``scale`` [rows]: what an int8 step is worth, where a kernel asks for another than the largest
    weight over 127 (7 bits, or a large bias).
    """
    if scale is None:
        scale = row_scale(codes, scheme)
    if _is_direct(codes, scheme):
        return codes.q.astype(np.int8), scale
    columns = codes.q.shape[1]
    block = None if codes.scale.shape[1] == 1 else columns // codes.scale.shape[1]
    steps = Codes(codes.q, _steps(codes, scheme, scale), codes.zero)
    return np.rint(dequantize(steps, block, columns)).astype(np.int8), scale


def int8_view(
    b: Builder, name: str, codes: Codes, scheme: Affine, *, by_column: bool, unsigned: bool
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """(codes, float32 scale [rows], zero point or None) for the integer kernels.

    ``codes`` are int8 (or uint8 with a zero point of 128, for ``unsigned``), [rows, columns], or
    [columns, rows] for ``by_column``. 8-bit codes are stored as they are. 4-bit codes are brought
    to 8 bits at load, Cast -> Sub -> Mul -> Round -> Cast -> Reshape, their block scales being
    stored as multiples of the row's: every float step of the chain costs four bytes a weight while
    the session opens, so there are no more of them than that.
    """
    rows, columns = codes.q.shape
    scale = row_scale(codes, scheme)
    scales = b.constant(f"{name}.row_scale", scale)
    zero = b.shared("uint8.zero_point", np.array(128, np.uint8)) if unsigned else None
    if _is_direct(codes, scheme):
        q = codes.q.T if by_column else codes.q
        if unsigned:
            q = (q.astype(np.int16) + 128).astype(np.uint8)
        return b.constant(f"{name}.codes", q), scales, zero
    shape = (columns, rows) if by_column else (rows, columns)
    q = int8_chain(b, name, codes, scheme, by_column=by_column, unsigned=unsigned, shape=shape)
    return q, scales, zero


def int8_chain(
    b: Builder,
    name: str,
    codes: Codes,
    scheme: Affine,
    *,
    by_column: bool,
    unsigned: bool,
    shape: tuple[int, ...],
    scale: NDArray[np.float32] | None = None,
) -> ir.Value:
    """int8 codes made at load from 4-bit ones, in ``shape``: what :func:`int8_codes` computes."""
    rows, columns = codes.q.shape
    layout = _BlockLayout(rows, columns, codes.scale.shape[1], by_column)
    if scale is None:
        scale = row_scale(codes, scheme)
    value = _unpacked(b, name, codes, scheme, layout, _steps(codes, scheme, scale))
    value = b.at_load("Round", [value], name=f"{name}.rounded")
    if unsigned:
        shift = b.shared("uint8.shift", np.array(128, np.float32))
        value = b.at_load("Add", [value, shift], name=f"{name}.shifted")
    kind = ir.DataType.UINT8 if unsigned else ir.DataType.INT8
    value = b.at_load("Cast", [value], {"to": kind}, name=f"{name}.int8.blocks")
    target = b.constant(f"{name}.shape", np.array(shape, np.int64))
    return b.at_load("Reshape", [value, target], name=f"{name}.int8")
