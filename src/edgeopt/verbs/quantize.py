"""``edgeopt quantize``: a smaller, faster file, and the proof of what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.core import Plan, Progress, Proof
from edgeopt.files.open import open_source
from edgeopt.targets.base import Request, deliver, planned
from edgeopt.targets.gguf.options import GGUF_KEYWORDS, GgufOptions
from edgeopt.targets.plans import read_plan
from edgeopt.verbs.calling import verb

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgeopt.targets.gguf.options import GgufKeywords

__all__ = ["make_plan", "quantize"]


@verb(more=GGUF_KEYWORDS)
def quantize(
    source: str | Path,
    out: str | Path | None = None,
    *,
    bits: int | None = None,
    to: str | None = None,
    data: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    block_size: int | None = None,
    method: str = "auto",
    prefer: str = "balanced",
    target: str = "here",
    plan: str | Path | Plan | None = None,
    external_data: str | int = "auto",
    min_sqnr: float | None = None,
    min_same: float | None = None,
    force: bool = False,
    threads: int = 1,
    on: str | None = None,
    remote_python: str = "python3",
    progress: Progress | None = None,
    **gguf: Unpack[GgufKeywords],
) -> Proof:
    """Quantize ``source``, write the artifact, and prove the written file.

    Args:
        source: a model file or folder, recognised by content.
        out: file to write; default ``NAME-int8.onnx`` (or ``.safetensors``, ``NAME-Q4_K_M.gguf``)
            beside the source.
        bits: 8 or 4, of the weights; default 8 (for GGUF ``Q4_K_M``).
        to: ``onnx`` (sources with a graph), ``safetensors`` (weights alone) or ``gguf`` (language
            models and BERT in Hugging Face folders, and other GGUF files); default: by source.
        data: sample inputs (see :mod:`edgeopt.data.samples`); three quarters calibrate, the rest
            is held out for the proof.
        inputs: shapes as ``name:float32[1,3,224,224]``, where nothing else tells them.
        model: ``package.module:callable`` that returns the ``nn.Module`` of a state dict.
        trust_pickle: the file may run the code it carries.
        block_size: weights that share a scale at 4 bits; a power of two from 16 to 256.
        method: how weights are rounded: ``mse`` (least squared error), ``rtn`` (to the nearest
            code) or ``hqq``; ``auto`` takes what measured best (see ``docs/formats.md``).
        prefer: ``balanced``, ``speed``, ``size`` or ``memory``.
        target: ``here`` times choices on this machine (or ``on`` another), ``portable`` makes
            none of them.
        plan: a plan file to replay: same source, same plan, same bytes.
        external_data: ``auto`` writes an ONNX model with more than 256 MiB of weights as two
            files, ``OUT`` and ``OUT.data`` beside it, which the runtime maps; ``always`` and
            ``never``; or a number of bytes in place of the 256 MiB.
        min_sqnr: fidelity floor in dB (default 20 at 8 bits, 8 at 4).
        min_same: the least share (0 to 1) of samples whose answer stays the same, where an output
            is a classification; 0.9 with ``data``, whatever ``min_sqnr`` says.
        force: keep the artifact although the proof failed.
        threads: of the runtime, while timing.
        on: another machine to quantize for, ``ssh://user@host[:port][/folder]`` or
            ``adb://serial``: candidates are scored and timed there, and the proof is measured
            there, with its own ONNX Runtime in ``remote_python``.
        gguf: what only GGUF knows: ``type``, ``tensor_types``, ``imatrix`` and more, see
            :class:`edgeopt.targets.gguf.options.GgufOptions`.

    Returns:
        The proof. Where ``proof.proven`` is false and ``force`` was not given, nothing was kept.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    request = Request(
        verb="quantize",
        out=out,
        bits=bits,
        to=to,
        data=data,
        inputs=inputs,
        model=model,
        trust_pickle=trust_pickle,
        block_size=block_size,
        method=method,
        prefer=prefer,
        target=target,
        plan=read_plan(plan),
        external_data=external_data,
        min_sqnr=min_sqnr,
        min_same=min_same,
        force=force,
        threads=threads,
        on=on,
        remote_python=remote_python,
        gguf=GgufOptions(**gguf),
        progress=progress,
    )
    return deliver(open_source(source), request)


@verb(more=GGUF_KEYWORDS)
def make_plan(
    source: str | Path,
    *,
    bits: int | None = None,
    to: str | None = None,
    data: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    block_size: int | None = None,
    method: str = "auto",
    prefer: str = "balanced",
    target: str = "here",
    min_sqnr: float | None = None,
    min_same: float | None = None,
    threads: int = 1,
    on: str | None = None,
    remote_python: str = "python3",
    progress: Progress | None = None,
    out: str | Path | None = None,
    force: bool = False,
    external_data: str | int = "auto",
    **gguf: Unpack[GgufKeywords],
) -> Plan:
    """The plan that :func:`quantize` would carry out; nothing is written (``out``, ``force``
    and ``external_data`` are taken so that both can be called alike)."""
    request = Request(
        verb="quantize",
        out=out,
        bits=bits,
        to=to,
        data=data,
        inputs=inputs,
        model=model,
        trust_pickle=trust_pickle,
        block_size=block_size,
        method=method,
        prefer=prefer,
        target=target,
        min_sqnr=min_sqnr,
        min_same=min_same,
        threads=threads,
        on=on,
        remote_python=remote_python,
        gguf=GgufOptions(**gguf),
        progress=progress,
    )
    plan = planned(open_source(source), request)
    assert plan is not None  # quantizing always is a choice
    return plan
