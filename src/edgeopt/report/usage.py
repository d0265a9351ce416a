"""Five lines of Python that run an artifact: its plain runtime, nothing of edgeopt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeopt.core import InputSpec

__all__ = ["gguf_usage", "usage_lines"]

#: What a free dimension is shown as, where no real input tells: batch 1, a short sequence, and
#: for images (rank 4, channels first) the size that most models were trained at.
_BATCH, _SEQUENCE, _IMAGE = 1, 16, 224


def usage_lines(
    artifact: Path,
    inputs: Sequence[InputSpec],
    outputs: Sequence[InputSpec],
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, int] | None = None,
) -> str:
    """Valid Python that runs ``artifact`` on made-up inputs of the right names, dtypes and shapes.

    ``shapes`` are shapes that are known to work, by input name (those of the samples); free
    dimensions of other inputs get plausible sizes. Integers are ones: an id that every vocabulary
    has, and a mask that hides nothing. ``values`` are those of lone integers that mean something of
    their own (a sample rate).
    """
    known, lone = shapes or {}, values or {}
    arrays = ", ".join(
        f"{spec.name!r}: {_array(spec, tuple(known.get(spec.name, ())), lone.get(spec.name))}"
        for spec in inputs
    )
    kinds = "; ".join(map(str, inputs))
    # A list of targets rather than names of their own: an output's name need not be Python's.
    results = "; ".join(map(str, outputs))
    return "\n".join(
        (
            "import numpy as np",
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession({str(artifact)!r})",
            f"inputs = {{{arrays}}}  # {_comment(kinds)}",
            f"outputs = session.run(None, inputs)  # {_comment(results)}",
        )
    )


def gguf_usage(artifact: Path, *, embedder: bool) -> str:
    """Valid Python that runs a GGUF ``artifact`` with llama-cpp-python."""
    if embedder:
        return "\n".join(
            (
                "from llama_cpp import Llama",
                f"model = Llama({str(artifact)!r}, embedding=True, verbose=False)",
                "print(model.embed('The capital of France is Paris.', normalize=True)[:4])",
            )
        )
    return "\n".join(
        (
            "from llama_cpp import Llama",
            f"model = Llama({str(artifact)!r}, verbose=False)",
            "answer = model('The capital of France is', max_tokens=16)",
            "print(answer['choices'][0]['text'])",
        )
    )


def _array(spec: InputSpec, shape: tuple[int, ...], value: int | None = None) -> str:
    if len(shape) != len(spec.shape):
        shape = tuple(
            dim if isinstance(dim, int) else _plausible(spec, axis)
            for axis, dim in enumerate(spec.shape)
        )
    if spec.dtype == "str":
        return f'np.full({shape}, "text", object)'
    if value is not None:
        return f"np.full({shape}, {value}, {spec.dtype!r})"
    maker = "zeros" if spec.dtype.startswith("float") else "ones"
    return f"np.{maker}({shape}, {spec.dtype!r})"


def _plausible(spec: InputSpec, axis: int) -> int:
    if axis == 0:
        return _BATCH
    return _IMAGE if len(spec.shape) == 4 else _SEQUENCE


def _comment(text: str) -> str:
    """Names from a file, kept on the comment's own line."""
    return " ".join(text.split())
