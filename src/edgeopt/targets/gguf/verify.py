"""``edgeopt verify`` for GGUF: against the folder it was made from, or against another GGUF."""

from __future__ import annotations

import time
from pathlib import Path

from edgeopt.core import Progress, Proof, Source
from edgeopt.errors import MissingExtraError, SourceError
from edgeopt.files.gguf_write import Field
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.read import read_model
from edgeopt.runtimes import llamacpp
from edgeopt.targets.gguf.checks import (
    Expected,
    ProofPart,
    check_structure,
    check_tensors,
    type_name,
)
from edgeopt.targets.gguf.prove import (
    ProofSubject,
    Reference,
    assemble,
    default_threads,
    fitting_context,
    nominal_bits,
    reference_file,
)
from edgeopt.targets.gguf.reference import write_reference
from edgeopt.targets.gguf.runs import check_predictions, check_runs, is_embedder, read_text
from edgeopt.targets.gguf.token_ids import token_texts

__all__ = ["verify_gguf"]

#: What decides which tokens a text is cut into; other keys are hints, and not every writer's.
_TOKENIZER = ("tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges")


def verify_gguf(
    source: Source,
    artifact: Source,
    *,
    text: Path | None = None,
    chunks: int = 8,
    context: int = 512,
    min_sqnr: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Prove a GGUF ``artifact``, of edgeopt or of anybody, against ``source``.

    Every tensor is compared with the source's, llama.cpp loads and runs the file, and with
    ``text`` what both predict is compared over ``chunks`` of ``context`` tokens. ``source`` is a
    GGUF of the same model, or its Hugging Face folder; of a folder a temporary GGUF in 16 bits is
    made, beside the artifact, where there is a text.

    Raises SourceError where the two are not of one model (architecture, tokenizer) or the text
    cannot be read, MissingExtraError where there is a text and no llama-cpp-python.
    """
    start = time.perf_counter()
    threads = threads or default_threads()
    if text is not None and not llamacpp.installed():
        raise MissingExtraError("llama-cpp-python", "llama", "comparing on --text")
    before, after = read_model(source), read_model(artifact)
    _require_one_model(source, before, artifact, after)
    context = fitting_context(before, fitting_context(after, context))
    body = None if text is None else read_text(text, chunks, context)
    parts = []
    tensors, errors = check_tensors(
        before.tensors,
        after.tensors,
        made_from=False,
        min_sqnr=min_sqnr,
        threads=threads,
        files=(*source.files, artifact.path),
        progress=progress,
    )
    expected = [Expected(w.name, w.shape, type_name(w), w.nbytes) for w in after.tensors]
    path, embedder = artifact.path, is_embedder(after)
    structure = check_structure(path, expected, after.metadata, progress)
    runs = check_runs(
        path,
        path,
        embedder=embedder,
        threads=threads,
        progress=progress,
        asked_ids=token_texts(source, before),
    )
    parts = [tensors, structure, runs]
    reference: Reference | None = None

    def write(path: Path) -> int:
        return write_reference(source, before, path, progress)

    if text is None or body is None:
        parts.append(ProofPart(unproven=("what the models predict: give a text with --text FILE",)))
    elif all(check.passed for check in runs.checks):
        with reference_file(source, before, path, write, progress) as reference:
            predictions = check_predictions(
                reference.path,
                path,
                path,
                embedder=embedder,
                text=body,
                label=text.name,
                chunks=chunks,
                context=context,
                bits=min(nominal_bits(model.tensors) for model in (before, after)),
                threads=threads,
                progress=progress,
            )
        parts.append(predictions)
    return assemble(
        "verify",
        source,
        path,
        path,
        parts,
        ProofSubject(before.tensors, after.tensors, errors, reference),
        threads=threads,
        start=start,
        notes=before.notes,
    )


def _require_one_model(
    source: Source, before: LanguageModel, artifact: Source, after: LanguageModel
) -> None:
    if before.architecture != after.architecture:
        raise SourceError(
            f"{artifact.path}: is of architecture {after.architecture}, {source.path} is "
            f"{before.architecture}; compare files of one model"
        )
    for key in _TOKENIZER:
        if problem := _unlike(before.metadata.get(key), after.metadata.get(key)):
            raise SourceError(
                f"{artifact.path}: {key} {problem} in {source.path}; compare files of one model"
            )


def _unlike(ours: Field | None, theirs: Field | None) -> str:
    """How the artifact's value (``theirs``) is another than the source's; empty where it is not."""
    if ours is None or theirs is None:
        return "" if ours is theirs else "is in one file only, and"
    if ours.type != "array" or theirs.type != "array":
        return "" if ours.value == theirs.value else f"is {theirs.value!r}, {ours.value!r}"
    if len(ours.value) != len(theirs.value):
        return f"has {len(theirs.value)} entries, {len(ours.value)}"
    pairs = enumerate(zip(ours.value, theirs.value, strict=True))
    first = next(((i, a, b) for i, (a, b) in pairs if a != b), None)
    return "" if first is None else f"has {first[2]!r} at {first[0]}, {first[1]!r}"
