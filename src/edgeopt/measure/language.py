"""Ask about GGUF files in fresh processes: a crash of native code ends its worker, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import Progress
from edgeopt.measure.llm_jobs import RUNTIME, TEXT
from edgeopt.measure.process import Outcome, workplace

__all__ = ["blames_file", "compare_embeddings", "compare_next_tokens", "read_with_gguf", "try_out"]


def try_out(
    artifact: Path,
    prompts: Sequence[str],
    *,
    tokens: int,
    embedder: bool = False,
    cut: Sequence[str] = (),
    threads: int = 1,
    progress: Progress | None = None,
) -> Outcome:
    """Load a file and generate ``tokens`` greedily after each prompt (an embedder embeds them).

    Result: ``generated`` (text, tokens, finite), ``load`` seconds, ``session``: see
    :meth:`edgeopt.runtimes.llamacpp.LlamaSession.info`; ``cut``: the token ids of every text of
    ``cut``, added tokens recognised and nothing put around.
    """
    job = {
        "kind": "generate",
        "artifact": str(artifact.resolve()),
        "threads": threads,
        "tokens": tokens,
        "embeddings": embedder,
        "cut": list(cut),
    }
    return _ask(job, [prompt.encode() for prompt in prompts], progress)


def compare_next_tokens(
    source: Path,
    artifact: Path,
    text: bytes,
    *,
    chunks: int,
    context: int,
    threads: int = 1,
    progress: Progress | None = None,
) -> Outcome:
    """Run both files in lockstep over ``text``. Result: ``statistics``, ``tokens`` scored,
    ``finite``, ``chunks`` and ``context`` used, ``seconds``, ``session`` of the artifact."""
    job = {
        "kind": "divergence",
        "source": str(source.resolve()),
        "artifact": str(artifact.resolve()),
        "threads": threads,
        "chunks": chunks,
        "context": context,
        "embeddings": False,
    }
    return _ask(job, [text], progress)


def compare_embeddings(
    source: Path,
    artifact: Path,
    texts: Sequence[bytes],
    *,
    context: int,
    threads: int = 1,
    progress: Progress | None = None,
) -> Outcome:
    """The cosine between both files' embeddings of every text: ``cosines``, ``session``."""
    job = {
        "kind": "embeddings",
        "source": str(source.resolve()),
        "artifact": str(artifact.resolve()),
        "threads": threads,
        "context": context,
        "embeddings": True,
    }
    return _ask(job, texts, progress)


def read_with_gguf(artifact: Path, progress: Progress | None = None) -> Outcome:
    """What gguf-py sees: ``tensors`` (name, shape rows first, type, offset, bytes) and
    ``metadata`` (type, element type, count, digest)."""
    return _ask({"kind": "structure", "artifact": str(artifact.resolve())}, [b""], progress)


def blames_file(outcome: Outcome) -> bool:
    """Whether a failed job's error is about a file, and not about the runtime or the machine."""
    return outcome.error is not None and outcome.subject not in ("", RUNTIME)


def _ask(job: Mapping[str, Any], texts: Sequence[bytes], progress: Progress | None) -> Outcome:
    with workplace({TEXT: np.frombuffer(text, np.uint8)} for text in texts) as place:
        return place.run(job, progress=progress)
