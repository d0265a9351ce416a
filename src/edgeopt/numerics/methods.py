"""The data-free rounding methods by name. A new one is one module and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from edgeopt.core import Codes
from edgeopt.numerics import hqq, mse, rtn

__all__ = ["METHODS", "Method"]


class Method(Protocol):
    """float32 ``[rows, columns]`` in, codes with blocks along the columns out."""

    def __call__(
        self,
        w: NDArray[Any],
        *,
        bits: int,
        block: int | None,
        symmetric: bool,
        scale_dtype: str = "float32",
    ) -> Codes: ...


METHODS: Mapping[str, Method] = {
    "rtn": rtn.encode,
    "mse": mse.encode,
    "hqq": hqq.encode,
}
