"""Static INT8: Q/DQ pairs placed on a float ONNX graph so that the runtime computes in integers.

:func:`prepare` makes the graph foldable, :func:`select` picks the nodes and tensors by the rules
in :mod:`~edgeopt.graphs.static.rules`, :func:`calibrate` finds the ranges, :func:`place` writes
the pairs, :func:`integer_kernels` counts what the runtime made of them. :func:`quantize_static`
does all of it.
"""

from __future__ import annotations

from edgeopt.graphs.static.calibrate import METHODS, calibrate
from edgeopt.graphs.static.kernels import integer_kernels
from edgeopt.graphs.static.packed import decode_weights, four_bit_decision, store_packed
from edgeopt.graphs.static.pipeline import DEFAULT_METHOD, StaticResult, quantize_static
from edgeopt.graphs.static.place import place
from edgeopt.graphs.static.prepare import prepare
from edgeopt.graphs.static.rules import SEEDS
from edgeopt.graphs.static.select import Selection, select

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "SEEDS",
    "Selection",
    "StaticResult",
    "calibrate",
    "decode_weights",
    "four_bit_decision",
    "integer_kernels",
    "place",
    "prepare",
    "quantize_static",
    "select",
    "store_packed",
]
