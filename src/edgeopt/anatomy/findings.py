"""Findings: what is in the file that need not be, the bytes it costs, the command that saves them.

Each finding is a function of what is known about the file, in the table ``FINDINGS``; adding one
is adding a function.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edgeopt.anatomy import commands
from edgeopt.anatomy.attribution import Attribution
from edgeopt.anatomy.scan import Scan
from edgeopt.core import DTYPE_BITS, Source, Weight, format_bytes
from edgeopt.files.sparse import sparsity

__all__ = ["FINDINGS", "Evidence", "Finding", "findings", "is_embedding"]

#: Under this share of the file a finding that only tidies up is not worth a line.
WORTH = 0.001


@dataclass(frozen=True)
class Finding:
    """``saves``: bytes off the disk. ``exact``: counted rather than estimated. ``lossless``: the
    model's answers stay the same. ``command`` is None where no command can do it."""

    name: str
    title: str
    saves: int
    command: str | None
    exact: bool = True
    lossless: bool = True
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """All that findings are made from. ``total``: bytes on disk."""

    source: Source
    attribution: Attribution
    scan: Scan
    total: int
    embeddings: frozenset[int] = field(default_factory=frozenset)

    def with_role(self, role: str) -> list[int]:
        return [i for i, tensor in enumerate(self.tensors) if tensor.role == role]

    @property
    def tensors(self) -> tuple[Weight, ...]:
        return self.attribution.tensors

    def own(self, indices: Iterable[int]) -> int:
        return sum(self.attribution.own[i] for i in indices)

    def names(self, indices: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.tensors[i].name for i in indices)


_TABLES = ("embed", "wte", "wpe", "token_embd", "position_embd", "shared.weight", "tok_emb")
_NOT_TABLES = ("linear", "dense", "proj", "fc", "norm", "mlp", "conv")
_HEADS = ("lm_head.weight", "output.weight", "decoder.weight", "predictions.decoder.weight")


def is_embedding(weight: Weight, tables: Iterable[tuple[int, ...]] = ()) -> bool:
    """A table that ids look up, or the output matrix over the same vocabulary (of one of the
    shapes ``tables``)."""
    if len(weight.shape) != 2 or weight.role not in ("weight", "buffer"):
        return False
    name = weight.name.lower()
    if any(part in name for part in _TABLES) and not any(part in name for part in _NOT_TABLES):
        return True
    return name.endswith(_HEADS) and weight.shape in tuple(tables)


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """All of them, what saves most first. None of a file that edgeopt stored sparse: the commands
    rewrite plain tensors, and would take its parts for such."""
    if sparsity(evidence.source.weights) is not None:
        return ()
    found = [finding for look in FINDINGS for finding in look(evidence) if finding.saves > 0]
    return tuple(sorted(found, key=lambda finding: -finding.saves))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _listed(names: Sequence[str], limit: int = 2) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# ---------------------------------------------------------------------------------------------
# what was only needed for training


_EXTRAS = {
    "optimizer": "Optimizer state, which only further training needs",
    "ema": "An averaged copy of the weights (EMA) beside the weights",
    "other": "Tensors beside the model that running it does not need",
}


def _training_state(evidence: Evidence) -> Iterator[Finding]:
    for role, title in _EXTRAS.items():
        members = evidence.with_role(role)
        command = commands.weights_only(evidence.source) or commands.quantize(evidence.source)
        yield Finding(
            role,
            f"{title}: {_count(len(members), 'tensor')}",
            evidence.own(members),
            command,
            tensors=evidence.names(members),
        )


def _copies(evidence: Evidence) -> Iterator[Finding]:
    """Equal bytes twice: tied weights that lost their tie, or plain copies."""
    source = evidence.source
    for pairs, seen in (
        (evidence.scan.copies, "equal to"),
        (evidence.scan.likely_copies, "likely equal to (beginnings compared; --deep to be sure)"),
    ):
        # An averaged copy is a finding of its own; its equality adds nothing.
        pairs = {i: j for i, j in pairs.items() if evidence.tensors[i].role != "ema"}
        if not pairs:
            continue
        names = [evidence.tensors[i].name for i in pairs]
        originals = [evidence.tensors[j].name for j in pairs.values()]
        tied = any(i in evidence.embeddings and j in evidence.embeddings for i, j in pairs.items())
        what = "Tied weights stored twice" if tied else "The same tensor stored again"
        more = f" and {_count(len(names) - 1, 'more pair')}" if len(names) > 1 else ""
        yield Finding(
            "tied" if tied else "copies",
            f"{what}: {names[0]} is {seen} {originals[0]}{more}",
            evidence.own(pairs),
            _untwin(source, names, originals),
            exact=pairs is not evidence.scan.likely_copies and seen == "equal to",
            tensors=tuple(names),
        )


def _untwin(source: Source, names: Sequence[str], originals: Sequence[str]) -> str | None:
    if source.kind == "onnx":
        return commands.export(source, "--to", "onnx")
    prefix = source.details.get("prefix", "")
    pairs = [[prefix + a, prefix + b] for a, b in zip(names, originals, strict=True)]
    if source.kind in ("safetensors", "hf-folder"):
        # The format cannot share bytes; transformers ties what config.json says is tied.
        drop = f"t = {{k: v for k, v in t.items() if k not in {json.dumps([a for a, _ in pairs])}}}"
        return commands.rewrite(source, "tied", drop, need_torch=False)
    if len(pairs) <= 3:
        ties = "; ".join(f"t[{json.dumps(a)}] = t[{json.dumps(b)}]" for a, b in pairs)
    else:
        ties = (
            "seen = {}; t = {k: seen.setdefault((v.dtype, v.shape, "
            "v.flatten().view(torch.uint8).numpy().tobytes()), v) "
            "if torch.is_tensor(v) else v for k, v in t.items()}"
        )
    return commands.rewrite(source, "tied", ties) or commands.export(source)


# ---------------------------------------------------------------------------------------------
# how it is stored


def _slack(evidence: Evidence) -> Iterator[Finding]:
    slack = evidence.attribution.slack
    saves = sum(slack.values())
    if saves < WORTH * evidence.total:
        return
    names = sorted(slack, key=lambda name: -slack[name])
    clone = (
        "t = {k: v.clone() if torch.is_tensor(v) and v.untyped_storage().nbytes() > v.nbytes "
        "else v for k, v in t.items()}"
    )
    yield Finding(
        "views",
        f"Views that drag a larger storage along: {_listed(names)}",
        saves,
        commands.rewrite(evidence.source, "compact", clone) or commands.quantize(evidence.source),
        tensors=tuple(names),
    )


_LOWER = {
    "float64": "FP64",
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "int8": "integers to 127",
}


def _precision(evidence: Evidence) -> Iterator[Finding]:
    """Wider than the values need. Constant tensors (norms at 1, biases at 0) do not count by
    themselves: they fit anything and weigh nothing."""
    facts = evidence.scan.facts
    fits: dict[str, list[int]] = {}
    for index, seen in facts.items():
        if seen.lowest != evidence.tensors[index].dtype and seen.not_finite == 0:
            fits.setdefault(seen.lowest, []).append(index)
    saves = {
        lower: sum(
            evidence.attribution.own[i]
            * (DTYPE_BITS[evidence.tensors[i].dtype] - DTYPE_BITS[lower])
            // DTYPE_BITS[evidence.tensors[i].dtype]
            for i in members
        )
        for lower, members in fits.items()
    }
    for lower, members in fits.items():
        if saves[lower] < 0.01 * evidence.total:
            continue
        whole = all(facts[i].whole for i in members)
        wide = " and ".join(sorted({_LOWER.get(evidence.tensors[i].dtype, "") for i in members}))
        sure = "hold only values" if whole else "begin with only values (--deep to be sure)"
        what = "that are " if lower == "int8" else "that are exact in "
        yield Finding(
            "precision",
            f"{_count(len(members), 'tensor')} in {wide} {sure} {what}{_LOWER[lower]}",
            saves[lower],
            _narrow(evidence.source, lower),
            exact=whole,
            tensors=evidence.names(members),
        )


def _narrow(source: Source, lower: str) -> str | None:
    if lower == "int8":
        return commands.quantize(source)
    cast = (
        f"t = {{k: v.to(torch.{lower}) if torch.is_tensor(v) and v.is_floating_point() "
        f"and v.to(torch.{lower}).to(v.dtype).equal(v) else v for k, v in t.items()}}"
    )
    return commands.rewrite(source, lower, cast) or (
        commands.export(source, "--half") if lower == "float16" else commands.quantize(source)
    )


def _empty_rows(evidence: Evidence) -> Iterator[Finding]:
    """Rows that hold one value: padding of a vocabulary, dead channels."""
    tensors, facts = evidence.tensors, evidence.scan.facts
    copies = evidence.scan.copies
    own = evidence.attribution.own
    members = [
        i
        for i, seen in facts.items()
        # Of an expanded tensor (stride 0) there is less on disk than rows.
        if seen.whole and seen.empty and i not in copies and own[i] == tensors[i].nbytes
    ]
    saves = sum(facts[i].empty * (tensors[i].nbytes // tensors[i].shape[0]) for i in members)
    if saves < WORTH * evidence.total:
        return
    rows = sum(facts[i].empty for i in members)
    largest = max(members, key=lambda i: facts[i].empty * tensors[i].nbytes // tensors[i].shape[0])
    cut = facts[largest].trailing
    command = None
    if 0 < cut < tensors[largest].shape[0] and len(members) == 1 and evidence.source.kind != "onnx":
        prefix = evidence.source.details.get("prefix", "")
        name = json.dumps(prefix + tensors[largest].name)
        command = commands.rewrite(
            evidence.source,
            "cut",
            f"t[{name}] = t[{name}][:{tensors[largest].shape[0] - cut}].clone()",
            need_torch=False,
        )
    yield Finding(
        "empty-rows",
        f"{_count(rows, 'row')} of one repeated value, in {_listed(evidence.names(members))}"
        + (f" ({cut:,} at its end: padding)" if cut else ""),
        saves,
        command,
        lossless=False,
        tensors=evidence.names(members),
    )


def _zeros(evidence: Evidence) -> Iterator[Finding]:
    """Mostly zeros, outside empty rows: pruned, and stored as if it were not."""
    tensors, facts = evidence.tensors, evidence.scan.facts
    members = [i for i, seen in facts.items() if seen.whole and seen.zeros > 0.5 * seen.elements]
    members = [i for i in members if facts[i].empty * 2 < (tensors[i].shape or (1,))[0]]
    saves = sum(facts[i].zeros * tensors[i].nbytes // max(1, tensors[i].size) for i in members)
    if saves >= 0.01 * evidence.total:
        yield Finding(
            "zeros",
            f"{_count(len(members), 'tensor')} more than half zeros: "
            f"{_listed(evidence.names(members))}",
            saves,
            _compress(evidence.source),
            exact=False,
            tensors=evidence.names(members),
        )


def _compressible(evidence: Evidence) -> Iterator[Finding]:
    """Values that repeat, other than because they are wider than they need be."""
    packed = evidence.scan.packed
    narrowed = sum(
        evidence.attribution.own[i]
        for i, facts in evidence.scan.facts.items()
        if facts.lowest != evidence.tensors[i].dtype
    )
    if packed is not None and packed < 0.8 and narrowed < 0.1 * evidence.total:
        saves = int(evidence.own(evidence.scan.facts) * (1 - packed))
        if saves >= 0.01 * evidence.total:
            yield Finding(
                "compression",
                f"Values repeat: a sample of them packs to {packed:.0%} (for transport only; "
                "a runtime needs the file unpacked)",
                saves,
                _compress(evidence.source),
                exact=False,
            )


def _compress(source: Source) -> str | None:
    path = str(source.path)
    if source.path.is_dir():
        return commands.shell("tar", "-czf", f"{path.rstrip('/')}.tar.gz", path)
    return commands.shell("gzip", "-k", path)


def _overhead(evidence: Evidence) -> Iterator[Finding]:
    """More header, padding and code than data worth the name."""
    overhead = evidence.total - evidence.attribution.total
    details = evidence.source.details
    overhead -= sum(details.get("other_files", {}).values())
    overhead -= sum(details.get("tokenizer", {}).values())
    if overhead > 0.05 * evidence.total and evidence.source.weights:
        each = overhead // len(evidence.source.weights)
        yield Finding(
            "overhead",
            f"Headers, padding and code: {format_bytes(each)} for each of "
            f"{_count(len(evidence.source.weights), 'tensor')}; one file without padding has less",
            max(0, overhead - _lean_header(evidence.source)),
            commands.quantize(evidence.source) if evidence.scan.total else None,
            exact=False,
        )


def _lean_header(source: Source) -> int:
    """What a safetensors header would take: a name, a dtype, a shape and two offsets a tensor."""
    return sum(len(weight.name) + 70 for weight in source.weights)


# ---------------------------------------------------------------------------------------------
# what lies there unused


def _unused(evidence: Evidence) -> Iterator[Finding]:
    names = set(evidence.source.details.get("unused", ()))
    members = [i for i, tensor in enumerate(evidence.tensors) if tensor.name in names]
    yield Finding(
        "unused",
        f"Initializers that no node uses: {_listed(evidence.names(members))}",
        evidence.own(members),
        commands.export(evidence.source, "--to", "onnx"),
        tensors=evidence.names(members),
    )


_WEIGHT_FILES = (
    ".bin",
    ".h5",
    ".msgpack",
    ".onnx",
    ".ot",
    ".safetensors",
    ".pt",
    ".gguf",
    ".tflite",
)


def _other_files(evidence: Evidence) -> Iterator[Finding]:
    """The same model in other formats, as hubs like to keep it."""
    others: dict[str, int] = evidence.source.details.get("other_files", {})
    models = {n: b for n, b in others.items() if PurePosixPath(n).suffix in _WEIGHT_FILES}
    paths = [str(evidence.source.path / name) for name in models]
    yield Finding(
        "other-files",
        f"Weights in other files of the folder, which are not the ones loaded: "
        f"{_listed(list(models))}",
        sum(models.values()),
        commands.shell("rm", *paths) if paths else None,
        tensors=tuple(models),
    )


def _embeddings(evidence: Evidence) -> Iterator[Finding]:
    """A vocabulary can weigh more than the layers; four bits serve a table as well as a layer."""
    own = {i: evidence.attribution.own[i] for i in evidence.embeddings}
    own = {i: n for i, n in own.items() if i not in evidence.scan.copies and n}
    nbytes = sum(own.values())
    if nbytes < 0.2 * evidence.total:
        return
    floats = {i: n for i, n in own.items() if evidence.tensors[i].is_float}
    packed = sum(_four_bits(evidence.tensors[i]) for i in floats)
    yield Finding(
        "embeddings",
        f"Embeddings are {nbytes / evidence.total:.0%} of the file; 4 bits serve a table too",
        sum(floats.values()) - packed,
        commands.quantize(evidence.source, "--bits", "4"),
        exact=False,
        lossless=False,
        tensors=evidence.names(own),
    )


def _four_bits(weight: Weight) -> int:
    """Codes, and an FP32 scale and a zero point for each block of 128."""
    blocks = weight.shape[0] * -(-weight.shape[1] // 128)
    return weight.size // 2 + blocks * 5


FINDINGS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    _training_state,
    _copies,
    _slack,
    _precision,
    _empty_rows,
    _zeros,
    _compressible,
    _overhead,
    _unused,
    _other_files,
    _embeddings,
)
