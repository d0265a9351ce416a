"""The proof of a GGUF file: as the file that will be deployed, by the runtime that will run it."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeopt.core import (
    Basis,
    Change,
    Check,
    Ggml,
    Plan,
    Progress,
    Proof,
    Source,
    TensorFidelity,
    Verdict,
    Weight,
    file_sha256,
    format_bytes,
)
from edgeopt.core.ggml import PLAIN_TYPES
from edgeopt.errors import FormatError, OutputError, SourceError, UsageError
from edgeopt.files import leftovers
from edgeopt.files.open import open_source
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.read import read_model
from edgeopt.measure.environment import environment
from edgeopt.measure.tensor_errors import TensorError
from edgeopt.report.usage import gguf_usage
from edgeopt.targets.gguf.checks import (
    Expected,
    ProofPart,
    check_structure,
    check_tensors,
    type_name,
)
from edgeopt.targets.gguf.runs import (
    check_predictions,
    check_runs,
    is_embedder,
    missing_llama,
    read_text,
)
from edgeopt.targets.gguf.token_ids import token_texts
from edgeopt.targets.proof import proof_of

__all__ = [
    "ProofSubject",
    "Reference",
    "assemble",
    "bits_per_weight",
    "default_threads",
    "fitting_context",
    "nominal_bits",
    "prove_gguf",
    "reference_file",
]

_MAX_THREADS = 8
#: Tensors shown by name.
_WORST = 5

#: Writes the source as GGUF in 16 bits to a path, and says how many bytes that took.
WriteReference = Callable[[Path], int]


def prove_gguf(
    verb: str,
    source: Source,
    model: LanguageModel,
    plan: Plan,
    written: Path,
    final: Path,
    *,
    depth: Literal["none", "quick", "full"] = "quick",
    text: Path | None = None,
    chunks: int = 8,
    context: int = 512,
    min_sqnr: float | None = None,
    write_reference: WriteReference | None = None,
    chosen: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Prove ``written``, which will be called ``final``, against the model it was made from.

    ``quick``: every tensor's error from the written bytes, the structure as gguf-py reads it, and
    that llama.cpp loads and runs it and cuts texts into the source's tokens. ``full``: also
    next-token distributions (of an embedder: embeddings) over ``chunks`` of ``context`` tokens of
    ``text``, against the source itself where it is GGUF, else against the file that
    ``write_reference`` makes, removed afterwards.
    ``chosen``: the user named the pre-tokenizer, so other token ids are named and fail nothing.
    ``min_sqnr`` is the least dB of every tensor, in place of its type's own floor.

    What the proof took stands in ``artifact``: ``seconds`` and ``proof_disk`` (bytes for a while).

    Raises SourceError where the text cannot be read, OutputError where the disk has no room for
    the reference. Whatever is wrong with the file is a check that fails.
    """
    start = time.perf_counter()
    threads = threads or default_threads()

    def proof(parts: Sequence[ProofPart], facts: ProofSubject) -> Proof:
        return assemble(
            verb,
            source,
            written,
            final,
            parts,
            facts,
            plan=plan,
            threads=threads,
            start=start,
            notes=model.notes,
        )

    if depth == "none":
        asked = ProofPart(unproven=("anything: --prove none was asked for",))
        return proof([asked], ProofSubject(model.tensors, _planned(model, plan)))
    try:
        stored = read_model(open_source(written)).tensors
    except FormatError as error:
        reason = f"{error.problem}{f' ({error.field})' if error.field else ''}"
        broken = Check("structure", False, reason, "a file that edgeopt reads", "make it anew")
        return proof([ProofPart((broken,))], ProofSubject())
    tensors, errors = check_tensors(
        model.tensors,
        stored,
        min_sqnr=min_sqnr,
        threads=threads,
        files=(*source.files, written),
        progress=progress,
    )
    facts = ProofSubject(model.tensors, stored, errors)
    expected = [
        Expected(d.tensor, d.shape, d.scheme.type, d.nbytes)
        for d in plan.decisions
        if isinstance(d.scheme, Ggml)
    ]
    embedder = is_embedder(model)
    structure = check_structure(written, expected, model.metadata, progress)
    runs = check_runs(
        written,
        final,
        embedder=embedder,
        threads=threads,
        progress=progress,
        asked_ids=token_texts(source, model),
        chosen=chosen,
    )
    parts = [tensors, structure, runs]
    if depth != "full" or not all(check.passed for check in runs.checks):
        return proof(parts, facts)
    if (missing := missing_llama("comparing what the models predict")) is not None:
        return proof([*parts, ProofPart(unproven=(missing,))], facts)
    if text is None:
        raise UsageError("--prove full compares the models on a text: give it with --text FILE")
    context = fitting_context(model, context)
    body = read_text(text, chunks, context)
    with reference_file(source, model, final, write_reference, progress) as reference:
        predictions = check_predictions(
            reference.path,
            written,
            final,
            embedder=embedder,
            text=body,
            label=text.name,
            chunks=chunks,
            context=context,
            bits=nominal_bits(stored),
            threads=threads,
            progress=progress,
        )
    return proof([*parts, predictions], dataclasses.replace(facts, reference=reference))


def _planned(model: LanguageModel, plan: Plan) -> tuple[Weight, ...]:
    """The tensors as the plan has them, for a file that nobody looks into."""
    kinds = {
        d.tensor: (d.scheme.type, d.nbytes) for d in plan.decisions if isinstance(d.scheme, Ggml)
    }
    return tuple(
        dataclasses.replace(weight, dtype=PLAIN_TYPES.get(kind, kind), nbytes=nbytes)
        for weight in model.tensors
        for kind, nbytes in (kinds[weight.name],)
    )


def default_threads() -> int:
    """One a core, up to 8."""
    return min(os.cpu_count() or 1, _MAX_THREADS)


def bits_per_weight(weights: Sequence[Weight]) -> float:
    """Bits that a weight takes on average, scales included."""
    values = sum(weight.size for weight in weights)
    return 8 * sum(weight.nbytes for weight in weights) / values if values else 0.0


def nominal_bits(weights: Sequence[Weight]) -> float:
    """Bits a weight without the token tables, which are kept finer: what predictions go by."""
    body = [w for w in weights if not w.name.startswith(("token_embd", "output"))]
    return bits_per_weight(body or weights)


def fitting_context(model: LanguageModel, context: int) -> int:
    """``context``, or what the model knows where that is less."""
    trained = model.number("context_length")
    return min(context, trained) if trained else context


@dataclass(frozen=True)
class Reference:
    """The file that an artifact is compared with, and what making it took."""

    path: Path
    nbytes: int = 0
    seconds: float = 0.0


@contextmanager
def reference_file(
    source: Source,
    model: LanguageModel,
    final: Path,
    write_reference: WriteReference | None,
    progress: Progress | None,
) -> Iterator[Reference]:
    """A GGUF source itself; of anything else a temporary file beside the artifact, as the disk
    that this goes to has room for models."""
    if source.kind == "gguf":
        yield Reference(source.path)
        return
    if write_reference is None:
        raise SourceError(f"{source.path}: is no GGUF, and nothing to make one of it was given")
    needed = sum(weight.size * (2 if len(weight.shape) > 1 else 4) for weight in model.tensors)
    folder = final.absolute().parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: the full proof takes {format_bytes(needed)} for a while, "
            f"{format_bytes(free)} are free; make room, or use --prove quick"
        )
    if progress is not None:
        progress(f"writing the reference, {format_bytes(needed)} for a while", None)
    leftovers.clear(folder, ".edgeopt-")
    prefix = f".edgeopt-{leftovers.owned_name()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as name:
        path = Path(name) / "reference.gguf"
        path.touch()
        start = time.perf_counter()
        nbytes = write_reference(path)
        yield Reference(path, nbytes, time.perf_counter() - start)


# ---------------------------------------------------------------------------------------------
# the document


@dataclass(frozen=True)
class ProofSubject:
    """What a proof is about: tensors before and after, their errors, and the reference made."""

    before: Sequence[Weight] = ()
    after: Sequence[Weight] = ()
    errors: Sequence[TensorError] = ()
    reference: Reference | None = None


def assemble(
    verb: str,
    source: Source,
    written: Path,
    final: Path,
    parts: Sequence[ProofPart],
    facts: ProofSubject,
    *,
    plan: Plan | None = None,
    threads: int,
    start: float,
    notes: Sequence[str] = (),
) -> Proof:
    """The proof that the parts come to. ``start``: when proving began, on the performance clock."""
    found = {key: value for part in parts for key, value in part.found.items()}
    checks = tuple(check for part in parts for check in part.checks)
    if verb == "quantize" and plan is not None and checks and facts.after:
        checks = (*checks, *_something_done(plan, facts))
    ran = any(check.name == "runs" and check.passed for check in checks)
    embeds = not any(one["tokens"] for one in found.get("generated", ()))
    made = facts.reference or Reference(written)
    return proof_of(
        verb,
        source,
        final,
        Verdict(
            checks,
            tuple(line for part in parts for line in part.unproven),
            _basis(found, len(facts.errors)),
        ),
        form="gguf",
        nbytes=written.stat().st_size,
        sha256=file_sha256(written),
        of_artifact={
            "type": None if plan is None else plan.options.get("type"),
            "bits_per_weight": bits_per_weight(facts.after),
            "types": _by_type(facts.after, facts.errors),
            **found,
            "seconds": {
                "proving": time.perf_counter() - start,
                **({"of that, writing the reference": made.seconds} if made.nbytes else {}),
            },
            "proof_disk": made.nbytes,
        },
        plan=plan,
        changes=_changes(plan, facts),
        coverage=_coverage(facts.after),
        tensors=(TensorFidelity(e.name, e.sqnr_db, e.finite) for e in _worst(facts.errors)),
        environment=environment(threads=threads),
        usage=gguf_usage(final, embedder=embeds) if ran else "",
        notes=notes,
    )


def _basis(found: dict[str, Any], tensors: int) -> Basis | None:
    """Every tensor, as a rule, and the text where one was predicted."""
    if "divergence" in found:
        return Basis("text", int(found["divergence"]["tokens"]))
    return Basis("weights", tensors) if tensors else None


def _something_done(plan: Plan, facts: ProofSubject) -> tuple[Check, ...]:
    """A copy is no quantized model, however well it answers."""
    done = [d for d in plan.decisions if d.method != "copy" and not d.kept]
    before, after = (sum(w.nbytes for w in tensors) for tensors in (facts.before, facts.after))
    quantized = Check(
        "something quantized",
        bool(done),
        f"{len(done)} of {len(plan.decisions)} tensors"
        if done
        else "already quantized: every tensor is kept as it is",
        "more than none",
        "nothing is to be done; for other types give the file in 16 bits, or --type with"
        " --allow-requantize",
    )
    smaller = Check(
        "file smaller",
        after < before,
        f"{format_bytes(after)} of weights from {format_bytes(before)}",
        "fewer bytes than the source",
        "choose a --type of fewer bits",
    )
    return quantized, smaller


def _changes(plan: Plan | None, facts: ProofSubject) -> tuple[Change, ...]:
    if plan is None:
        return ()
    ratios = {error.name: error.sqnr_db for error in facts.errors}
    before = {weight.name: weight.nbytes for weight in facts.before}
    return tuple(
        Change(
            decision,
            before.get(decision.tensor, decision.nbytes),
            decision.nbytes,
            None if decision.method == "copy" else ratios.get(decision.tensor),
        )
        for decision in plan.decisions
    )


def _by_type(weights: Sequence[Weight], errors: Sequence[TensorError]) -> dict[str, dict[str, Any]]:
    """Tensors, bytes and the worst error of every type, the heaviest first."""
    ratios = {error.name: error for error in errors}
    groups: dict[str, list[Weight]] = {}
    for weight in weights:
        groups.setdefault(type_name(weight), []).append(weight)
    table: dict[str, dict[str, Any]] = {}
    for kind, group in sorted(groups.items(), key=lambda item: -sum(w.nbytes for w in item[1])):
        known = [ratios[weight.name] for weight in group if weight.name in ratios]
        worst = min(known, key=lambda e: _rank(e.sqnr_db), default=None)
        table[kind] = {
            "tensors": len(group),
            "nbytes": sum(weight.nbytes for weight in group),
            "bits_per_weight": bits_per_weight(group),
            "lowest_db": None if worst is None else worst.sqnr_db,
            "lowest": None if worst is None else worst.name,
        }
    return table


def _coverage(weights: Sequence[Weight]) -> dict[str, Any]:
    """The share of the weights (by number, as their source's width is not the file's) that are
    stored in blocks."""
    total = sum(weight.size for weight in weights)
    blocks = [weight for weight in weights if type_name(weight) not in PLAIN_TYPES]
    if not total:
        return {}
    by_kind: dict[str, int] = {}
    for weight in weights:
        by_kind[type_name(weight)] = by_kind.get(type_name(weight), 0) + weight.size
    return {
        "of": "of the weights",
        "share": sum(weight.size for weight in blocks) / total,
        "quantized_tensors": len(blocks),
        "bits": by_kind,
    }


def _worst(errors: Sequence[TensorError]) -> list[TensorError]:
    """The worst tensors; those without any error are not shown."""
    lossy = [error for error in errors if error.sqnr_db != math.inf]
    return sorted(lossy, key=lambda error: _rank(error.sqnr_db))[:_WORST]


def _rank(ratio: float) -> float:
    return -math.inf if math.isnan(ratio) else ratio
