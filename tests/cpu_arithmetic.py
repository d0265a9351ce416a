"""Integer products as x86-64 CPUs compute them, in numpy: what a test holds on whichever it meets.

Before VNNI, ONNX Runtime multiplies uint8 by int8 with ``vpmaddubsw``: products of columns 2i and
2i + 1 are added in 16 bits, and saturate there (Intel 64 and IA-32 Architectures Software
Developer's Manual, vol. 2C). With VNNI, and with uint8 weights everywhere, sums are exact. A test
whose subject is a file takes the arithmetic as a parameter; one whose subject is the runtime here
asks which of the two it has.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

__all__ = ["ALL", "AVX2", "VNNI", "Arithmetic", "at_hand", "machine", "run_as"]

Array = NDArray[Any]


class Arithmetic(Enum):
    """How sums of products of uint8 and int8 are kept: all of them exactly, or pairs in 16 bits."""

    EXACT = "exact"
    SATURATING = "saturating"


VNNI, AVX2 = Arithmetic.EXACT, Arithmetic.SATURATING
ALL = (VNNI, AVX2)
_FEATURES = {VNNI: ["avx2", "avx512_vnni"], AVX2: ["avx2"]}


def machine(arithmetic: Arithmetic) -> dict[str, Any]:
    """What a proof's environment says of such a CPU, as the planner reads it."""
    return {"machine": "x86_64", "features": _FEATURES[arithmetic]}


def product(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """The sum over k of ``a [..., m, k] * b [..., k, n]``, int32, as a CPU of this kind has it."""
    left, right = a.astype(np.int64), b.astype(np.int64)
    if arithmetic is AVX2 and a.dtype == np.uint8 and b.dtype == np.int8:
        odd = left.shape[-1] % 2
        left = np.concatenate([left, np.zeros_like(left[..., :odd])], axis=-1)
        right = np.concatenate([right, np.zeros_like(right[..., :odd, :])], axis=-2)
        even = left[..., :, 0::2, None] * right[..., None, 0::2, :]
        pairs = even + left[..., :, 1::2, None] * right[..., None, 1::2, :]
        return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=-2).astype(np.int32)
    return (left @ right).astype(np.int32)


def run_as(made: Any, arithmetic: Arithmetic, **feeds: Array) -> list[Array]:
    """Outputs of a graph of standard operators, by ONNX's reference, its integer products so."""

    class MatMulInteger(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, a: Array, b: Array, a_zero: Any = None, b_zero: Any = None) -> tuple[Array]:
            za = np.int64(0) if a_zero is None else np.asarray(a_zero, np.int64)
            zb = np.int64(0) if b_zero is None else np.asarray(b_zero, np.int64)
            a, vector = np.atleast_2d(a), a.ndim == 1
            # The runtime multiplies bytes as they are, and takes the zero points out later.
            of_rows = a.astype(np.int64).sum(axis=-1, keepdims=True)
            of_columns = b.astype(np.int64).sum(axis=-2, keepdims=True)
            raw = product(a, b, arithmetic).astype(np.int64)
            sums = (raw - za * of_columns - zb * of_rows + a.shape[-1] * za * zb).astype(np.int32)
            return (sums[0] if vector else sums,)

    return list(ReferenceEvaluator(made, new_ops=[MatMulInteger]).run(None, feeds))


@cache
def at_hand() -> Arithmetic:
    """Which of the two ONNX Runtime has on this CPU, asked by a product that tells them apart."""
    a = helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])
    weight = numpy_helper.from_array(np.full((2, 1), 127, np.int8), "w")
    node = helper.make_node("MatMulInteger", ["a", "w"], ["y"])
    graph = helper.make_graph([node], "probe", [a], [y], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"a": np.full((1, 2), 255, np.uint8)})
    return VNNI if sums.item() == 2 * 255 * 127 else AVX2
