"""``--input name:float32[1,3,224,224]``: what a model takes, said on the command line."""

from __future__ import annotations

import re

from edgeopt.core import DTYPE_BITS, InputSpec, unnamed
from edgeopt.errors import UsageError

__all__ = ["parse_input", "parse_inputs"]

#: What people write for numpy's names.
ALIASES = {
    "float": "float32",
    "half": "float16",
    "double": "float64",
    "int": "int32",
    "long": "int64",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "i32": "int32",
    "i64": "int64",
}

INPUT_DTYPES = tuple(
    d
    for d in DTYPE_BITS
    if not d.startswith(("float8", "float4", "complex")) and d not in ("int4", "int2", "uint4")
)

_FORM = re.compile(r"(?:(?P<name>.*[^:]):)?(?P<dtype>[A-Za-z]\w*)\[(?P<dims>[^\[\]]*)\]")
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_EXAMPLE = "write it as x:float32[1,3,224,224], with names for free dimensions: x:int64[batch,seq]"


def parse_input(text: str) -> InputSpec:
    """``name:dtype[d0,d1,...]`` as an :class:`InputSpec`.

    A dimension is a positive integer, or a name where it is free (``?`` for one without); ``[]`` is
    a scalar. The name
    may be left out for a model's only input: ``float32[1,28,28]`` gives the name ``input``.

    Raises:
        UsageError: another form, an unknown dtype, or a dimension that is neither.
    """
    compact = "".join(text.split())
    found = _FORM.fullmatch(compact)
    if found is None:
        raise UsageError(f"--input {text!r} has no dtype[shape]; {_EXAMPLE}")
    dtype = ALIASES.get(found["dtype"], found["dtype"])
    if dtype not in INPUT_DTYPES:
        raise UsageError(
            f"--input {text!r} has dtype {found['dtype']!r}; use one of {', '.join(INPUT_DTYPES)}"
        )
    dims: list[int | str] = []
    for part in found["dims"].split(",") if found["dims"] else []:
        if part.isascii() and part.isdigit() and 0 < int(part) < 2**31:
            dims.append(int(part))
        elif _SYMBOL.fullmatch(part):
            dims.append(part)
        elif part == "?":  # free without a name, as a model's inputs are shown
            dims.append(unnamed(found["name"] or "input", len(dims)))
        else:
            raise UsageError(
                f"--input {text!r} has dimension {part!r}, which is no positive integer and no"
                f" name; {_EXAMPLE}"
            )
    return InputSpec(found["name"] or "input", dtype, tuple(dims))


def parse_inputs(texts: list[str] | tuple[str, ...]) -> tuple[InputSpec, ...]:
    """Several ``--input`` options, one an input. Raises UsageError when two share a name."""
    specs = tuple(parse_input(text) for text in texts)
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--input names {twice!r} twice; give every input its own name")
    return specs
