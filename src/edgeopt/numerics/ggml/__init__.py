"""ggml's tensor types: rows of floats to blocks of bytes, and back.

One module a type family; each registers what it encodes and decodes in the tables of
:mod:`edgeopt.numerics.ggml.codec`. Rows are independent of one another, so any split of a tensor
by rows gives the same bytes, on any number of threads.
"""

from __future__ import annotations

from edgeopt.numerics.ggml.codec import decode, decodes, encode, encodes

__all__ = ["decode", "decodes", "encode", "encodes"]
