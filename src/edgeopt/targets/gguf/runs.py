"""What can be checked of a GGUF file by running it with llama.cpp, in a worker process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from edgeopt.core import Check, Progress
from edgeopt.errors import MissingExtraError, SourceError
from edgeopt.files.reading import open_regular, reading
from edgeopt.llm.model import LanguageModel
from edgeopt.measure.language import (
    blames_file,
    compare_embeddings,
    compare_next_tokens,
    try_out,
)
from edgeopt.measure.process import Outcome
from edgeopt.runtimes import llamacpp
from edgeopt.targets.gguf.checks import ProofPart
from edgeopt.targets.gguf.token_ids import TokenTexts, check_token_ids

__all__ = ["check_predictions", "check_runs", "is_embedder", "missing_llama", "read_text"]

#: (bits a weight at least, mean KL divergence at most, mean cosine of embeddings at least): what a
#: working model of that size stays within by far. A sieve for broken files, no mark of quality.
_LIMITS: Sequence[tuple[float, float, float]] = (
    (12.0, 0.02, 0.999),
    (8.0, 0.1, 0.99),
    (6.0, 0.3, 0.98),
    (5.0, 0.6, 0.95),
    (4.0, 1.5, 0.90),
    (3.0, 3.0, 0.80),
    (0.0, 6.0, 0.60),
)

_PROMPTS = ("The capital of France is", "1, 2, 3, 4,")
_GENERATED = 16

#: Bytes of text read for each token compared: several times what any tokenizer takes.
_BYTES_A_TOKEN = 32
#: Texts embedded for each chunk asked for.
_LINES_A_CHUNK = 8


def is_embedder(model: LanguageModel) -> bool:
    """Whether the model gives embeddings of texts and no next token."""
    causal = model.metadata.get(f"{model.architecture}.attention.causal")
    pooling = model.metadata.get(f"{model.architecture}.pooling_type")
    return (causal is not None and not causal.value) or (pooling is not None and pooling.value > 0)


def missing_llama(purpose: str) -> str | None:
    """What a verdict says where llama-cpp-python is not installed, else None."""
    if llamacpp.installed():
        return None
    return str(MissingExtraError("llama-cpp-python", "llama", purpose))


def check_runs(
    path: Path,
    final: Path,
    *,
    embedder: bool,
    threads: int,
    progress: Progress | None,
    asked_ids: TokenTexts | None = None,
    chosen: bool = False,
) -> ProofPart:
    """That llama.cpp loads the file and goes on after a prompt (or embeds it), in a worker; and
    that it cuts ``asked_ids`` as the source does (``chosen``: see :func:`check_token_ids`)."""
    ids = asked_ids or TokenTexts()
    if (missing := missing_llama("loading and running the file")) is not None:
        return ProofPart(unproven=(missing,))
    if progress is not None:
        progress("running", None)
    outcome = try_out(
        path,
        _PROMPTS,
        tokens=_GENERATED,
        embedder=embedder,
        cut=ids.texts,
        threads=threads,
        progress=progress,
    )
    asked = "embeds texts" if embedder else f"generates {_GENERATED} tokens from finite logits"
    if outcome.result is None:
        return _failed("runs", outcome, f"llama.cpp loads it and {asked}", path, final)
    result = outcome.result
    finite = all(one["finite"] for one in result["generated"])
    said = next((one["text"] for one in result["generated"]), "")
    found = f"loads, and goes on with {said!r}" if said and not embedder else f"loads and {asked}"
    check = Check(
        "runs",
        finite,
        found if finite else "NaN or Inf in what llama.cpp computes",
        f"llama.cpp loads it and {asked}",
        "use a type with more bits, or check that the source is sound",
    )
    details = {key: result[key] for key in ("generated", "load", "session")}
    cut = check_token_ids(ids, result["cut"], chosen=chosen)
    return ProofPart((check, *cut.checks), cut.unproven, {**details, **cut.found})


def read_text(path: Path, chunks: int, context: int) -> bytes:
    """As much of a text file as ``chunks`` of ``context`` tokens can need. SourceError where it
    is empty or cannot be read."""
    with reading(path), open_regular(path) as stream:
        text = stream.read(chunks * context * _BYTES_A_TOKEN)
    if not text.strip():
        raise SourceError(f"{path}: is empty; give a text to compare on")
    return text


def check_predictions(
    base: Path,
    path: Path,
    final: Path,
    *,
    embedder: bool,
    text: bytes,
    label: str,
    chunks: int,
    context: int,
    bits: float,
    threads: int,
    progress: Progress | None,
) -> ProofPart:
    """Next-token distributions (of an embedder: embeddings) against ``base``, on ``text``.

    ``bits`` a weight decide what the check asks for.
    """
    if embedder:
        return _check_embeddings(
            base, path, final, text, label, chunks, context, bits, threads, progress
        )
    outcome = compare_next_tokens(
        base, path, text, chunks=chunks, context=context, threads=threads, progress=progress
    )
    limit = next(kld for least, kld, _ in _LIMITS if bits >= least)
    asked = f"{limit:g} nats or less on average, at {bits:.1f} bits a weight"
    if outcome.result is None:
        return _failed("next tokens", outcome, asked, path, final)
    result = outcome.result
    values = {each["name"]: each["value"] for each in result["statistics"]}
    mean = values["Mean KLD"]
    check = Check(
        "next tokens",
        bool(result["finite"]) and mean <= limit,
        f"KL divergence {mean:.6f} nats, same top {values['Same top p']:.1f} %"
        if result["finite"]
        else "NaN or Inf among the logits",
        asked,
        "use a type with more bits, or an importance matrix with --imatrix",
    )
    found = {**result, "text": label}
    session = found.pop("session")
    return ProofPart((check,), found={"divergence": found, "session": session})


def _check_embeddings(
    base: Path,
    path: Path,
    final: Path,
    text: bytes,
    label: str,
    chunks: int,
    context: int,
    bits: float,
    threads: int,
    progress: Progress | None,
) -> ProofPart:
    lines = [line for line in text.splitlines() if line.strip()][: chunks * _LINES_A_CHUNK]
    outcome = compare_embeddings(
        base, path, lines, context=context, threads=threads, progress=progress
    )
    limit = next(cosine for least, _, cosine in _LIMITS if bits >= least)
    asked = f"a cosine of {limit:g} or more on average, at {bits:.1f} bits a weight"
    if outcome.result is None:
        return _failed("embeddings", outcome, asked, path, final)
    cosines = outcome.result["cosines"]
    mean, least = math.fsum(cosines) / len(cosines), min(cosines)
    check = Check(
        "embeddings",
        mean >= limit,
        f"cosine {mean:.5f} on average, {least:.5f} at least, over {len(cosines)} texts",
        asked,
        "use a type with more bits, or an importance matrix with --imatrix",
    )
    found = {"text": label, "texts": len(cosines), "mean_cosine": mean, "least_cosine": least}
    return ProofPart((check,), found={"embeddings": found, "session": outcome.result["session"]})


def _failed(name: str, outcome: Outcome, asked: str, path: Path, final: Path) -> ProofPart:
    """A job that gave no result: the file's fault, or nobody's who is on trial here."""
    reason = str(outcome.error).replace(str(path.resolve()), final.name)
    if not blames_file(outcome):
        return ProofPart(unproven=(f"{name}: {reason}",))
    return ProofPart(
        (Check(name, False, reason, asked, "make the file anew, or report what it says"),)
    )
