"""Static INT8 from 4-bit weights: four bits on disk, eight in the kernel.

Before placing, weights are replaced by what their 4-bit codes decode to, so that every scale and
bias is made for them; after placing, the int8 weights are stored as the 4-bit codes and the chain
that makes them at load. The runtime computes the chain when the session opens and fuses what it
finds then into the same integer kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from edgeopt.numerics.affine import dequantize, sqnr_db

__all__ = ["Packed", "decode_weights", "four_bit_decision", "store_packed"]

#: A weight smaller than this keeps 8 bits: the chain's nodes would outweigh what it saves.
MIN_ELEMENTS = 2048


class Packed:
    """Codes of the weights that are to be stored in 4 bits, by name."""

    def __init__(self) -> None:
        self.codes: dict[str, tuple[Codes, Affine, tuple[int, ...]]] = {}
        self.errors: dict[str, float] = {}


def four_bit_decision(decision: Decision, block: int) -> Decision:
    """The same tensor in 4-bit blocks, where that is smaller and the tensor large enough."""
    scheme, shape = decision.affine, decision.shape
    if scheme is None or scheme.block == -1 or len(shape) < 2 or np.prod(shape) < MIN_ELEMENTS:
        return decision
    rows, columns = _matrix_shape(shape, scheme.axis)
    size = store.block_for(columns, block)
    packed = Affine(4, size, False, scheme.axis, "float16")
    nbytes = replace(packed, axis=-1).nbytes((rows, columns)) + 9 * rows
    if nbytes >= decision.nbytes:
        return decision
    reason = f"{decision.reason}, from 4 bits on disk"
    return replace(decision, scheme=packed, method="mse", reason=reason, nbytes=nbytes)


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
        q, scale = store.int8_codes(codes, scheme)
        values = q.astype(np.float32) * scale[:, None]
        packed.errors[tensor.name] = sqnr_db(
            matrix, dequantize(codes, scheme.block, matrix.shape[1])
        )
        packed.codes[tensor.name] = (codes, scheme, weight.shape)
        decoded = _tensor(values, weight.shape, scheme.axis)
        tensor.CopyFrom(numpy_helper.from_array(decoded.astype(weight.dtype), tensor.name))
    return packed


def store_packed(model: ir.Model, packed: Packed) -> tuple[str, ...]:
    """Swap the placed int8 weights for their 4-bit chains, in place; the names that were swapped.

    A weight whose placed codes are not the chain's (its scale was raised for a large bias) keeps
    its 8 bits: the file must compute what was placed.
    """
    builder = Builder(model)
    done = []
    for name, (codes, scheme, shape) in packed.codes.items():
        value = model.graph.initializers.get(f"{name}/q")
        if value is None or value.const_value is None:
            continue
        expected, _ = store.int8_codes(codes, scheme)
        if not np.array_equal(value.const_value.numpy(), _tensor(expected, shape, scheme.axis)):
            continue
        by_column = scheme.axis == 0 and len(shape) == 2
        chain = store.int8_chain(
            builder, name, codes, scheme, by_column=by_column, unsigned=False, shape=shape
        )
        value.replace_all_uses_with(chain)
        builder.drop(value)
        done.append(name)
    return tuple(done)
