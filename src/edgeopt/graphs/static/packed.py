"""Static INT8 from 4-bit weights: four bits on disk, eight in the kernel.

Before placing, weights are replaced by what their 4-bit codes decode to, so that every scale and
bias is made for them; after placing, the int8 weights are stored as the 4-bit codes and the chain
that makes them at load. The runtime computes the chain when the session opens and fuses what it
finds then into the same integer kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeopt.core import Affine, Codes, Decision
from edgeopt.graphs.forms import store
from edgeopt.graphs.forms.build import Builder
from edgeopt.graphs.transform import encode_site
from edgeopt.numerics.affine import dequantize, narrowest_scale, sqnr_db

__all__ = ["Packed", "decode_weights", "four_bit_decision", "store_packed"]

#: A weight smaller than this keeps 8 bits: the chain's nodes would outweigh what it saves.
MIN_ELEMENTS = 2048


class Packed:
    """Codes of the weights that are to be stored in 4 bits, by name."""

    def __init__(self) -> None:
        self.codes: dict[str, tuple[Codes, Affine, tuple[int, ...]]] = {}
        self.weights: dict[str, NDArray[np.float32]] = {}


def four_bit_decision(
    decision: Decision,
    block: int,
    weight: NDArray[Any] | None = None,
    method: str = "mse",
) -> Decision:
    """The same tensor in 4-bit blocks, where that is smaller and the tensor large enough.

    ``weight``: its values, which say what its scales fit into.
    """
    scheme, shape = decision.affine, decision.shape
    if scheme is None or scheme.block == -1 or len(shape) < 2 or np.prod(shape) < MIN_ELEMENTS:
        return decision
    rows, columns = _matrix_shape(shape, scheme.axis)
    size = store.block_for(columns, block)
    scale = "float16"
    if weight is not None:
        scale = narrowest_scale(_matrix(weight, scheme.axis), 4)
    packed = Affine(4, size, False, scheme.axis, scale)
    nbytes = replace(packed, axis=-1).nbytes((rows, columns)) + 9 * rows
    if nbytes >= decision.nbytes:
        return decision
    reason = f"{decision.reason}, from 4 bits on disk"
    return replace(decision, scheme=packed, method=method, reason=reason, nbytes=nbytes)


def _matrix_shape(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """[output channels, the rest]; ``axis`` 0 is a weight stored [inputs, outputs]."""
    channels = shape[1] if axis == 0 and len(shape) == 2 else shape[0]
    return channels, int(np.prod(shape)) // channels


def _matrix(weight: NDArray[Any], axis: int) -> NDArray[np.float32]:
    if axis == 0 and weight.ndim == 2:
        weight = weight.T
    return np.ascontiguousarray(weight, np.float32).reshape(weight.shape[0], -1)


def _tensor(matrix: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[Any]:
    if axis == 0 and len(shape) == 2:
        return np.ascontiguousarray(matrix.T)
    return matrix.reshape(shape)


def decode_weights(prepared: Any, decisions: Mapping[str, Decision]) -> Packed:
    """Replace, in a prepared ModelProto, every weight that has a 4-bit decision by its decoding."""
    packed = Packed()
    for tensor in prepared.graph.initializer:
        decision = decisions.get(tensor.name)
        if decision is None or decision.affine is None or decision.affine.bits != 4:
            continue
        scheme = decision.affine
        weight = numpy_helper.to_array(tensor)
        matrix = _matrix(weight, scheme.axis)
        codes = encode_site(matrix, decision.method, scheme)
        values = dequantize(codes, scheme.block, matrix.shape[1])
        packed.codes[tensor.name] = (codes, scheme, weight.shape)
        packed.weights[tensor.name] = matrix
        decoded = _tensor(values, weight.shape, scheme.axis)
        tensor.CopyFrom(numpy_helper.from_array(decoded.astype(weight.dtype), tensor.name))
    return packed


def store_packed(
    model: ir.Model, packed: Packed, placed: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, float]:
    """Swap the placed int8 weights for their 4-bit chains, in place: SQNR (dB) by name.

    ``placed`` names the codes and the scales that :func:`~edgeopt.graphs.static.place.place` gave
    each weight. The chain expands to those scales, whatever they are made for: 7 bits, where pairs
    of products saturate, or a bias that needs a coarser step.
    """
    builder = Builder(model)
    errors: dict[str, float] = {}
    for name, (codes, scheme, shape) in packed.codes.items():
        by_column = scheme.axis == 0 and len(shape) == 2
        for stored, scales in placed[name]:
            value, scale = (model.graph.initializers[part] for part in (stored, scales))
            assert scale.const_value is not None
            row_scale = np.asarray(scale.const_value.numpy(), np.float32)
            q, _ = store.int8_codes(codes, scheme, row_scale)
            error = sqnr_db(packed.weights[name], q.astype(np.float32) * row_scale[:, None])
            errors[name] = min(error, errors.get(name, math.inf))
            chain = store.int8_chain(
                builder,
                name,
                codes,
                scheme,
                by_column=by_column,
                unsigned=False,
                shape=shape,
                scale=row_scale,
            )
            value.replace_all_uses_with(chain)
            builder.drop(value)
    return errors
