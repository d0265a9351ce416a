"""What a worker can be asked about a GGUF file: does it run, how far is it from another, what does
gguf-py see in it.

The samples are texts, as arrays of their bytes. Every job returns plain JSON.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InputsError, SourceError
from edgeopt.measure.gguf_structure import structure
from edgeopt.measure.process import Feeds
from edgeopt.measure.reporter import Reporter
from edgeopt.numerics.divergence import DivergenceMeter
from edgeopt.runtimes.llamacpp import LlamaSession, preload

__all__ = ["LLM_JOBS", "RUNTIME", "TEXT"]

#: The input's name, and the subject that is busy before a file is: a failure then is no file's.
TEXT, RUNTIME = "text", "llama.cpp"

#: Context of a short generation.
_SHORT = 128

Tokens = NDArray[np.int32]


# ---------------------------------------------------------------------------------------------
# jobs


def generate(job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Reporter) -> dict[str, Any]:
    """Load the file and go on after each text greedily; an embedder embeds them. The texts of
    ``job["cut"]`` are only cut into tokens."""
    with _opened(voice, "artifact", job, _SHORT) as (session, seconds):
        made = []
        voice.busy("artifact", f"cutting texts with {session.path}")
        cut = [
            session.tokenize(text, special=False, control=True).tolist()
            for text in job.get("cut", ())
        ]
        for text in _texts(feeds, folder):
            voice.busy("artifact", f"running {session.path}")
            tokens = _prompt(session, text)[: _room(session, job["tokens"])]
            if job["embeddings"]:
                pooled = session.embed(tokens)
                # A vector of zeros has no direction: a pooled embedding never is one.
                finite = bool(np.isfinite(pooled).all() and pooled.any())
                made.append({"text": "", "tokens": [], "finite": finite})
                continue
            one = session.generate(tokens, job["tokens"])
            said = session.text_of(one.tokens) if session.has_tokenizer else ""
            made.append({"text": said, "tokens": list(one.tokens), "finite": one.finite})
        return {"generated": made, "load": seconds, "session": session.info(), "cut": cut}


def divergence(
    job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Reporter
) -> dict[str, Any]:
    """Both files in lockstep over the first text, chunk by chunk: no logits are kept.

    As llama-perplexity does it: chunks of ``context`` tokens, each beginning with the model's own
    first token where it has one; the second half of each is scored.
    """
    context = job["context"]
    (text,) = islice(_texts(feeds, folder), 1)
    with (
        _opened(voice, "source", job, context) as (base, _),
        _opened(voice, "artifact", job, context) as (other, _),
    ):
        tokens = _same_tokens(base, other, text)
        for session in (base, other):
            _require_context(session, context)
        chunks = min(job["chunks"], len(tokens) // context)
        if not chunks:
            raise InputsError(
                f"the text gives {len(tokens)} tokens, a chunk takes {context}; "
                "give a longer --text or a smaller --context"
            )
        meter = DivergenceMeter()
        start = time.perf_counter()
        for index in range(chunks):
            chunk = tokens[index * context : (index + 1) * context].copy()
            if base.bos is not None:
                chunk[0] = base.bos
            _score(base, other, chunk, context // 2, meter, voice)
            ppl, ppl_other = meter.perplexities
            step = f"comparing next tokens: PPL {ppl_other:.4g}, the source's {ppl:.4g},"
            voice.progress(step, (index + 1) / chunks)
        found = meter.result()
        return {
            "statistics": [dataclasses.asdict(each) for each in found.statistics],
            "tokens": found.tokens,
            "finite": found.finite,
            "chunks": chunks,
            "context": context,
            "seconds": time.perf_counter() - start,
            "session": other.info(),
        }


def embeddings(
    job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Reporter
) -> dict[str, Any]:
    """The cosine of both files' pooled embeddings of every text."""
    context = job["context"]
    cosines: list[float] = []
    with (
        _opened(voice, "source", job, context) as (base, _),
        _opened(voice, "artifact", job, context) as (other, _),
    ):
        for session in (base, other):
            _require_context(session, context)
        for index, text in enumerate(_texts(feeds, folder)):
            tokens = _same_tokens(base, other, text)[:context]
            voice.busy("source", f"running {base.path}")
            a = base.embed(tokens).astype(np.float64)
            voice.busy("artifact", f"running {other.path}")
            b = other.embed(tokens).astype(np.float64)
            lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
            cosines.append(float(a @ b) / lengths if lengths else float("nan"))
            voice.progress("comparing embeddings", (index + 1) / feeds.count)
        return {"cosines": cosines, "session": other.info()}


LLM_JOBS: Mapping[str, Callable[[Mapping[str, Any], Feeds, Path, Any], dict[str, Any]]] = {
    "generate": generate,
    "divergence": divergence,
    "embeddings": embeddings,
    "structure": structure,
}


# ---------------------------------------------------------------------------------------------
# sessions and texts


@contextmanager
def _opened(
    voice: Reporter, subject: str, job: Mapping[str, Any], context: int
) -> Iterator[tuple[LlamaSession, float]]:
    """A session of ``job[subject]``, and the seconds that opening it took."""
    voice.busy(RUNTIME, "loading llama.cpp")
    preload()
    voice.busy(subject, f"loading {job[subject]}")
    start = time.perf_counter()
    with LlamaSession.open(
        job[subject], threads=job["threads"], context=context, embeddings=job["embeddings"]
    ) as session:
        yield session, time.perf_counter() - start


def _texts(feeds: Feeds, folder: Path) -> Iterator[bytes]:
    for index in range(feeds.count):
        yield feeds.load(folder, index)[TEXT].tobytes()


def _prompt(session: LlamaSession, text: bytes) -> Tokens:
    """The text's tokens; for a file without a tokenizer, the first few of its vocabulary."""
    if session.has_tokenizer and len(tokens := session.tokenize(text)):
        return tokens
    return np.arange(min(8, session.vocabulary), dtype=np.int32)


def _room(session: LlamaSession, generated: int) -> int:
    """Tokens that a prompt may have, so that position tables are not left."""
    return max(1, min(session.context, session.trained_context or _SHORT) - generated)


def _require_context(session: LlamaSession, context: int) -> None:
    trained = session.trained_context
    if trained and context > trained:
        raise InputsError(
            f"{session.path}: knows texts of up to {trained} tokens, asked: {context}; "
            f"use --context {trained}"
        )


def _same_tokens(base: LlamaSession, other: LlamaSession, text: bytes) -> Tokens:
    """The text as both files cut it, which must be the same way."""
    tokens, others = base.tokenize(text), other.tokenize(text)
    if base.vocabulary != other.vocabulary or not np.array_equal(tokens, others):
        raise SourceError(
            f"{other.path}: cuts the text into other tokens than {base.path} "
            f"({len(others)} against {len(tokens)}, vocabularies of {other.vocabulary} and "
            f"{base.vocabulary}); compare files of one model"
        )
    return tokens


def _score(
    base: LlamaSession,
    other: LlamaSession,
    chunk: Tokens,
    first: int,
    meter: DivergenceMeter,
    voice: Reporter,
) -> None:
    """Add the predictions of the tokens after position ``first``."""
    at = first + 1
    # The last token is only predicted.
    logits = (session.stream_logits(chunk[:-1], first) for session in (base, other))
    for rows, others in _lockstep(*logits, voice=voice, paths=(base.path, other.path)):
        meter.add(rows, others, chunk[at : at + len(rows)])
        at += len(rows)


def _lockstep(
    base: Iterator[NDArray[np.float32]],
    other: Iterator[NDArray[np.float32]],
    *,
    voice: Reporter,
    paths: Sequence[Path],
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    while True:
        voice.busy("source", f"running {paths[0]}")
        rows = next(base, None)
        voice.busy("artifact", f"running {paths[1]}")
        others = next(other, None)
        if rows is None or others is None:
            return
        yield rows, others
