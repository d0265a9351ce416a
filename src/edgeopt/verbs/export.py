"""``edgeopt export``: the front door of quantize without quantizing, proven the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.core import Progress, Proof
from edgeopt.errors import UsageError
from edgeopt.files.open import open_source
from edgeopt.targets.base import Request, deliver
from edgeopt.targets.gguf.options import GGUF_KEYWORDS, GgufOptions
from edgeopt.verbs.calling import verb

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgeopt.targets.gguf.options import GgufKeywords

__all__ = ["export"]


@verb(more=GGUF_KEYWORDS)
def export(
    source: str | Path,
    out: str | Path | None = None,
    *,
    to: str | None = None,
    half: bool = False,
    opset: int | None = None,
    external_data: str | int = "auto",
    data: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    min_sqnr: float | None = None,
    min_same: float | None = None,
    prefer: str = "balanced",
    force: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
    **gguf: Unpack[GgufKeywords],
) -> Proof:
    """Write ``source`` as an ONNX file that plain ONNX Runtime runs, and prove the written file.

    Constants are folded and batch normalisation goes into the convolution before it; otherwise
    the graph is the source's. The bytes depend on the source and the options alone (and on the
    versions that the metadata names).

    ``half`` stores weights in float16, each with a Cast that the runtime folds when a session
    opens: half the file at FP32's speed on CPUs, whose kernels have no float16. Inputs, outputs
    and vectors stay float32, and so does a tensor that overflows float16 or that lies so low in
    its range that precision is lost (see :mod:`edgeopt.graphs.half`).

    Args:
        source: a model file or folder, recognised by content.
        out: file to write; default ``NAME-fp32.onnx``, ``NAME-fp16.onnx`` or ``NAME-F16.gguf``
            beside the source.
        to: ``onnx``, or ``gguf``: language models in 16 or 32 bits for llama.cpp.
        half: store weights in float16; the file must then be smaller than the source.
        opset: version of ONNX's operators; default 21, and an ONNX source keeps its own.
        external_data: as in :func:`edgeopt.quantize`.
        min_sqnr: fidelity floor in dB (default 30, with ``half`` 40).
        data, inputs, model, trust_pickle, min_same, prefer, force, threads: as in
            :func:`edgeopt.quantize`; ``data`` is only proven on, and gives example inputs.
        gguf: see :class:`edgeopt.targets.gguf.options.GgufOptions`; ``type`` is F16, BF16 or F32,
            by default 16 bits of the kind that the source has.

    Returns:
        The proof. Where ``proof.proven`` is false and ``force`` was not given, nothing was kept.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    _check_opset(opset)
    request = Request(
        verb="export",
        out=out,
        to=to,
        data=data,
        inputs=inputs,
        model=model,
        trust_pickle=trust_pickle,
        prefer=prefer,
        half=half,
        opset=opset,
        external_data=external_data,
        min_sqnr=min_sqnr,
        min_same=min_same,
        force=force,
        threads=threads,
        gguf=GgufOptions(**gguf),
        progress=progress,
    )
    return deliver(open_source(source), request)


def _check_opset(opset: int | None) -> None:
    from onnx.defs import onnx_opset_version

    if opset is not None and not 7 <= opset <= onnx_opset_version():
        raise UsageError(
            f"--opset {opset}: the onnx installed here knows 7 to {onnx_opset_version()};"
            " leave it out for 21"
        )
