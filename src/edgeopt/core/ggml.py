"""ggml's tensor types: how many values a block holds, and in how many bytes.

From ggml's type traits (https://github.com/ggml-org/ggml/blob/master/src/ggml.c).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "PLAIN_TYPES",
    "REMOVED_TYPES",
    "TYPES",
    "TYPES_BY_NAME",
    "TYPE_NUMBERS",
    "Ggml",
    "GgmlType",
]


@dataclass(frozen=True)
class GgmlType:
    """``block`` values are stored in ``nbytes`` bytes; a row is a whole number of blocks."""

    name: str
    block: int
    nbytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of ``columns`` values, a multiple of ``block``."""
        return columns // self.block * self.nbytes

    def tensor_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape (rows first)."""
        return math.prod(shape[:-1]) * self.row_bytes(shape[-1] if shape else 1)


#: Number in the file -> type.
TYPES: Mapping[int, GgmlType] = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    9: GgmlType("Q8_1", 32, 40),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    15: GgmlType("Q8_K", 256, 292),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1),
    25: GgmlType("I16", 1, 2),
    26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8),
    28: GgmlType("F64", 1, 8),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
    40: GgmlType("NVFP4", 64, 36),
    41: GgmlType("Q1_0", 128, 18),
}

TYPES_BY_NAME: Mapping[str, GgmlType] = {t.name: t for t in TYPES.values()}
TYPE_NUMBERS: Mapping[str, int] = {t.name: number for number, t in TYPES.items()}

#: Types that are stored value by value -> numpy's name.
PLAIN_TYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
}

#: Numbers that older files use, and no reader understands any more.
REMOVED_TYPES: Mapping[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


@dataclass(frozen=True)
class Ggml:
    """A :class:`~edgeopt.core.Scheme`: one of ggml's tensor types, by its official name."""

    type: str

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        stored = TYPES_BY_NAME[self.type]
        return 8 * stored.nbytes / stored.block

    def nbytes(self, shape: Sequence[int]) -> int:
        return TYPES_BY_NAME[self.type].tensor_bytes(shape)

    def accepts(self, shape: Sequence[int]) -> str | None:
        columns, block = (shape[-1] if shape else 1), TYPES_BY_NAME[self.type].block
        if columns % block:
            return f"rows of {columns} values are no whole number of {self.type} blocks of {block}"
        return None

    def to_json(self) -> dict[str, Any]:
        return {"type": "ggml", "name": self.type}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ggml:
        name = data["name"]
        if name not in TYPES_BY_NAME:
            raise ValueError(f"ggml has no type {name!r}")
        return cls(name)
