"""Put a site's stored codes where its consumers read them: one function a form.

======================  ====================================================================
form                    what a consumer runs on
======================  ====================================================================
``folded``              float weights, expanded from the codes when the session loads
``matmul-integer``      int8 codes; activations quantized as they come (dynamic)
``expanded``            the same kernels, int8 codes made at load from 4-bit codes on disk
``matmul-nbits``        packed codes, kept packed in memory (``com.microsoft.MatMulNBits``)
``gather``              int8 rows; only the gathered rows are decoded
``gather-nibbles``      packed rows, split and decoded by standard operators once gathered
======================  ====================================================================

``com.microsoft.GatherBlockQuantized`` does what ``gather-nibbles`` does in one node, at the same
speed in a whole MiniLM (alone 15 us against 18.6, for 16 rows of 384). The standard operators are
taken because any ONNX runtime has them and blocks need be no power of two. A ``tied`` table takes
the form of its products and the matching form of gather, both from one stored tensor.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.core import Affine, Codes
from edgeopt.graphs.fold import constant_array
from edgeopt.graphs.forms import store
from edgeopt.graphs.forms.build import Builder
from edgeopt.graphs.sites import Site, Use
from edgeopt.numerics import pack

__all__ = ["folded", "gather", "gather_nibbles", "integer_product", "nbits_product"]

_MICROSOFT = "com.microsoft"
_FLOAT = {"to": ir.DataType.FLOAT}


def folded(b: Builder, site: Site, codes: Codes, scheme: Affine) -> None:
    """Float weights expanded at load; works for whatever uses the tensor."""
    value = store.float_view(
        b,
        site.name,
        codes,
        scheme,
        shape=site.shape,
        by_column=site.by_column,
        dtype=site.dtype,
    )
    site.value.replace_all_uses_with(value)
    b.drop(site.value)


def integer_product(
    b: Builder, site: Site, codes: Codes, scheme: Affine, *, unsigned: bool = False
) -> None:
    """DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul (-> Add): an integer product.

    ONNX Runtime fuses it to DynamicQuantizeMatMul or MatMulIntegerToFloat. A tied table keeps its
    rows as they are, and the product sees them through a Transpose done at load.
    """
    tied = site.kind == "tied"
    q, scales, zero = store.int8_view(
        b, site.name, codes, scheme, by_column=not tied, unsigned=unsigned
    )
    for use in site.uses:
        if use.node.op_type == "Gather":
            _gather_rows(b, use, q, scales, zero)
    if tied:
        q = b.at_load("Transpose", [q], {"perm": [1, 0]}, name=f"{site.name}.columns")
    for use in site.uses:
        if use.node.op_type != "Gather":
            _integer_product(b, use, q, scales, zero)
    b.drop(site.value, [use.via for use in site.uses])


def _integer_product(
    b: Builder, use: Use, q: ir.Value, scales: ir.Value, zero: ir.Value | None
) -> None:
    node = use.node
    x = node.inputs[0]
    assert x is not None
    xq, x_scale, x_zero = b.quantized(node, x)
    name = node.outputs[0].name or "product"
    (sums,) = b.before(node, "MatMulInteger", [xq, q, x_zero, zero], name=f"{name}.sums")
    (as_float,) = b.before(node, "Cast", [sums], _FLOAT, name=f"{name}.float")
    (scale,) = b.before(node, "Mul", [x_scale, _alpha(b, node, scales)], name=f"{name}.scale")
    (y,) = b.before(node, "Mul", [as_float, scale], name=f"{name}.scaled")
    bias = _bias(b, node)
    if bias is not None:
        (y,) = b.before(node, "Add", [y, bias], name=f"{name}.biased")
    b.replace(node, y)


def _alpha(b: Builder, node: ir.Node, scales: ir.Value) -> ir.Value:
    alpha = _float(node, "alpha") if node.op_type == "Gemm" else 1.0
    if alpha == 1.0:
        return scales
    factor = b.shared(f"alpha.{alpha!r}", np.array(alpha, np.float32))
    return b.at_load("Mul", [scales, factor], name=f"{scales.name}.alpha")


def _bias(b: Builder, node: ir.Node) -> ir.Value | None:
    """Gemm's third input times beta, None where there is none."""
    if node.op_type != "Gemm" or len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    value, beta = node.inputs[2], _float(node, "beta")
    if beta == 1.0:
        return value
    array = constant_array(value)
    if array is not None:
        return b.constant(f"{value.name}.beta", np.asarray(array * np.float32(beta), np.float32))
    factor = b.constant(f"{value.name}.beta", np.array(beta, np.float32))
    return b.before(node, "Mul", [value, factor], name=f"{value.name}.scaled")[0]


def _float(node: ir.Node, name: str) -> float:
    attr = node.attributes.get(name)
    return float(attr.as_float()) if attr is not None else 1.0


def gather(b: Builder, site: Site, codes: Codes, scheme: Affine, *, unsigned: bool = False) -> None:
    """Gather of int8 rows and of their scales; only what was gathered becomes float."""
    q, scales, zero = store.int8_view(
        b, site.name, codes, scheme, by_column=False, unsigned=unsigned
    )
    for use in site.uses:
        _gather_rows(b, use, q, scales, zero)
    b.drop(site.value)


def _gather_rows(
    b: Builder, use: Use, q: ir.Value, scales: ir.Value, zero: ir.Value | None
) -> None:
    node = use.node
    indices = node.inputs[1]
    name = node.outputs[0].name or "rows"
    axis = {"axis": 0}
    (rows,) = b.before(node, "Gather", [q, indices], axis, name=f"{name}.codes")
    (as_float,) = b.before(node, "Cast", [rows], _FLOAT, name=f"{name}.float")
    if zero is not None:
        shift = b.shared("uint8.shift", np.array(128, np.float32))
        (as_float,) = b.before(node, "Sub", [as_float, shift], name=f"{name}.centred")
    (scale,) = b.before(node, "Gather", [scales, indices], axis, name=f"{name}.scales")
    last = b.shared("axis.last", np.array([-1], np.int64))
    (scale,) = b.before(node, "Unsqueeze", [scale, last], name=f"{name}.scale")
    (y,) = b.before(node, "Mul", [as_float, scale], name=f"{name}.rows")
    b.replace(node, y)


def gather_nibbles(b: Builder, site: Site, codes: Codes, scheme: Affine) -> None:
    """Gather of packed rows, two codes a byte: the row's first half low, its second half high, so
    that a Concat puts them back in order. Symmetric codes, moved up by 8."""
    columns = site.matrix_shape[1]
    blocks = codes.scale.shape[1]
    q = (codes.q.astype(np.int16) + 8).astype(np.uint8)
    half = columns // 2
    data = b.constant(f"{site.name}.codes", q[:, :half] | (q[:, half:] << np.uint8(4)))
    scales = b.constant(f"{site.name}.scale", codes.scale.astype(scheme.scale)[:, :, None])
    for use in site.uses:
        _gather_nibbles(b, use, data, scales, blocks, columns, scheme.scale != "float32")
    b.drop(site.value)


def _gather_nibbles(
    b: Builder,
    use: Use,
    data: ir.Value,
    scales: ir.Value,
    blocks: int,
    columns: int,
    half_scales: bool,
) -> None:
    node = use.node
    indices = node.inputs[1]
    assert indices is not None and indices.shape is not None
    rank = len(indices.shape)
    name = node.outputs[0].name or "rows"
    axis = {"axis": 0}
    mask = b.shared("nibble.mask", np.array(15, np.uint8))
    shift = b.shared("nibble.shift", np.array(4, np.uint8))
    centre = b.shared("nibble.centre", np.array(8, np.float32))
    (rows,) = b.before(node, "Gather", [data, indices], axis, name=f"{name}.codes")
    (low,) = b.before(node, "BitwiseAnd", [rows, mask], name=f"{name}.low")
    right = {"direction": "RIGHT"}
    (high,) = b.before(node, "BitShift", [rows, shift], right, name=f"{name}.high")
    last = {"axis": -1}
    (q,) = b.before(node, "Concat", [low, high], last, name=f"{name}.nibbles")
    (value,) = b.before(node, "Cast", [q], _FLOAT, name=f"{name}.float")
    (value,) = b.before(node, "Sub", [value, centre], name=f"{name}.centred")
    (scale,) = b.before(node, "Gather", [scales, indices], axis, name=f"{name}.scales")
    if half_scales:
        (scale,) = b.before(node, "Cast", [scale], _FLOAT, name=f"{name}.scales.float")
    # A zero in a Reshape's target copies that dimension.
    split = np.array([0] * rank + [blocks, columns // blocks], np.int64)
    join = np.array([0] * rank + [columns], np.int64)
    split_to = b.shared(f"shape.{split.tolist()}", split)
    join_to = b.shared(f"shape.{join.tolist()}", join)
    (value,) = b.before(node, "Reshape", [value, split_to], name=f"{name}.in_blocks")
    (value,) = b.before(node, "Mul", [value, scale], name=f"{name}.scaled")
    (y,) = b.before(node, "Reshape", [value, join_to], name=f"{name}.rows")
    b.replace(node, y)


def _zeros(codes: Codes, bits: int) -> NDArray[np.uint8]:
    """Packed zero points, also for symmetric codes: what a missing one means differs between
    execution providers, so it is always written."""
    zero = codes.zero
    if zero is None:
        zero = np.full(codes.scale.shape, 2 ** (bits - 1), np.uint8)
    return pack.pack_rows(zero, bits)


def _gather_blocks(
    b: Builder,
    use: Use,
    blob: ir.Value,
    scales: ir.Value,
    zeros: ir.Value,
    scheme: Affine,
) -> None:
    node = use.node
    name = node.outputs[0].name or "rows"
    assert scheme.block is not None
    (y,) = b.before(
        node,
        "GatherBlockQuantized",
        [blob, node.inputs[1], scales, zeros],
        {
            "bits": scheme.bits,
            "block_size": scheme.block,
            "gather_axis": 0,
            "quantize_axis": 1,
        },
        name=f"{name}.rows",
        domain=_MICROSOFT,
    )
    if scheme.scale != "float32":
        (y,) = b.before(node, "Cast", [y], _FLOAT, name=f"{name}.float")
    b.replace(node, y)


def nbits_product(
    b: Builder, site: Site, codes: Codes, scheme: Affine, *, accuracy_level: int
) -> None:
    """MatMulNBits on packed codes; a tied table is gathered from the same bytes."""
    name, (rows, columns) = site.name, site.matrix_shape
    assert scheme.block is not None
    blob = pack.matmul_nbits(codes, bits=scheme.bits, block=scheme.block)
    scales = b.constant(f"{name}.scale", codes.scale.astype(scheme.scale))
    zeros = b.constant(f"{name}.zero", _zeros(codes, scheme.bits))
    if site.kind == "tied":
        # Stored once, as the rows that are gathered; the product sees them in blocks.
        data = b.constant(f"{name}.codes", blob.data.reshape(rows, -1))
        for use in site.uses:
            if use.node.op_type == "Gather":
                _gather_blocks(b, use, data, scales, zeros, scheme)
        target = b.constant(f"{name}.blocks", np.array(blob.data.shape, np.int64))
        data = b.at_load("Reshape", [data, target], name=f"{name}.blocked")
    else:
        data = b.constant(f"{name}.codes", blob.data)
    if scheme.scale != "float32":
        scales = b.at_load("Cast", [scales], _FLOAT, name=f"{name}.scale.float")
    for use in site.uses:
        if use.node.op_type != "Gather":
            _nbits_product(b, use, data, scales, zeros, scheme, (rows, columns), accuracy_level)
    b.drop(site.value, [use.via for use in site.uses])


def _nbits_product(
    b: Builder,
    use: Use,
    blob: ir.Value,
    scales: ir.Value,
    zeros: ir.Value,
    scheme: Affine,
    shape: tuple[int, int],
    accuracy_level: int,
) -> None:
    node = use.node
    name = node.outputs[0].name or "product"
    (y,) = b.before(
        node,
        "MatMulNBits",
        [node.inputs[0], blob, _alpha(b, node, scales), zeros],
        {
            "N": shape[0],
            "K": shape[1],
            "bits": scheme.bits,
            "block_size": scheme.block,
            "accuracy_level": accuracy_level,
        },
        name=f"{name}.product",
        domain=_MICROSOFT,
    )
    bias = _bias(b, node)
    if bias is not None:
        (y,) = b.before(node, "Add", [y, bias], name=f"{name}.biased")
    b.replace(node, y)
