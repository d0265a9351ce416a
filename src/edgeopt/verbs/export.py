"""``edgeopt export``: the front door of quantize without quantizing, proven the same way."""

from __future__ import annotations

from pathlib import Path

from edgeopt.core import Proof
from edgeopt.errors import UsageError
from edgeopt.files.open import open_source
from edgeopt.options.table import Export
from edgeopt.targets.base import deliver, requested
from edgeopt.verbs.calling import asking

__all__ = ["export"]


@asking(Export)
def export(source: str | Path, options: Export) -> Proof:
    """Write ``source`` as an ONNX file that plain ONNX Runtime runs, and prove the written file.

    Constants are folded and batch normalisation goes into the convolution before it; otherwise
    the graph is the source's. The bytes depend on the source and the options alone (and on the
    versions that the metadata names).

    ``half`` stores weights in float16, each with a Cast that the runtime folds when a session
    opens: half the file at FP32's speed on CPUs, whose kernels have no float16. Inputs, outputs
    and vectors stay float32, and so does a tensor that overflows float16 or that lies so low in
    its range that precision is lost (see :mod:`edgeopt.graphs.half`).

    Args:
        source: a model file or folder, recognised by content; or a model in memory.
        {options}

    Returns:
        The proof. Where ``proof.proven`` is false and ``force`` was not given, nothing was kept.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    _check_opset(options.opset)
    return deliver(open_source(source), requested("export", options))


def _check_opset(opset: int | None) -> None:
    from onnx.defs import onnx_opset_version

    if opset is not None and not 7 <= opset <= onnx_opset_version():
        raise UsageError(
            f"--opset {opset}: the onnx installed here knows 7 to {onnx_opset_version()};"
            " leave it out for 21"
        )
