"""GGUF as a target: a language model is planned, streamed to the file, and the file proven."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core import Change, Choice, Plan, Proof, Source
from edgeopt.errors import UsageError
from edgeopt.files.atomic import checked_output
from edgeopt.files.gguf_write import GgufLayout
from edgeopt.files.imatrix import Imatrix, read_imatrix
from edgeopt.files.reading import as_named
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.plan import GgufAsked, layout_of, make_gguf_plan, replayed
from edgeopt.llm.read import read_model
from edgeopt.llm.stream import write_model
from edgeopt.targets.base import Request
from edgeopt.targets.gguf.options import require_checked, wants_gguf
from edgeopt.targets.gguf.prove import prove_gguf
from edgeopt.targets.gguf.reference import default_export_type, require_room, write_reference
from edgeopt.targets.gguf.verify import verify_gguf

__all__ = ["DEFAULT_TYPE", "TARGET"]

#: By bits asked for; None: nothing was asked.
DEFAULT_TYPE = {None: "Q4_K_M", 4: "Q4_K_M", 8: "Q8_0"}

#: What GGUF stores without quantizing.
_PLAIN = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class _GgufTarget:
    form: str = "GGUF"
    kinds: frozenset[str] = frozenset({"gguf"})

    def accepts(self, source: Source, request: Request) -> bool:
        return wants_gguf(source, request.to, request.out, request.gguf)

    def place(self, source: Source, request: Request) -> Path:
        """``NAME-Q4_K_M.gguf`` beside the source; a tag of 16 or 32 bits in NAME is taken off."""
        require_checked(request.gguf, request.min_sqnr)
        out = request.out
        if out is None:
            path = as_named(source.path)
            stem = path.name if path.is_dir() else path.name.removesuffix(path.suffix)
            for tag in ("-f32", "-f16", "-bf16", ".f32", ".f16", ".bf16"):
                if stem.lower().endswith(tag):
                    stem = stem[: -len(tag)]
            out = path.parent / f"{stem}-{_type_of(source, request)}.gguf"
        return checked_output(out, [source.path, *source.files])

    def beside(self, path: Path, request: Request) -> Path | None:
        return None

    @contextmanager
    def begin(self, source: Source, request: Request) -> Iterator[_GgufJob]:
        kind = _type_of(source, request)
        request.step("opening")
        options = request.gguf
        model = read_model(source, pre_tokenizer=options.pre_tokenizer)
        importance = None if options.imatrix is None else read_imatrix(Path(options.imatrix))
        if importance is not None:
            note = importance.fitted(model.tensors).note()
            if note is not None:
                model = dataclasses.replace(model, notes=(*model.notes, note))
        yield _GgufJob(source, request, kind, model, importance)

    def prove(self, source: Source, artifact: Source, request: Request) -> Proof:
        return verify_gguf(
            source,
            artifact,
            text=None if request.text is None else Path(request.text),
            chunks=request.chunks,
            context=request.context,
            min_sqnr=request.min_sqnr,
            progress=request.progress,
        )


TARGET = _GgufTarget()


def _type_of(source: Source, request: Request) -> str:
    """The preset or type that is asked for, or planned. UsageError for what contradicts itself."""
    asked = request.gguf.type
    if request.verb == "export":
        kind = (asked or default_export_type(source)).upper()
        if kind not in _PLAIN:
            raise UsageError(
                f"--type {kind}: export writes {', '.join(_PLAIN)}; for {kind} use edgeopt quantize"
            )
        return kind
    if request.plan is not None:
        return _planned_type(request.plan, request)
    if request.bits is not None and asked is not None:
        raise UsageError(f"--bits {request.bits} and --type {asked}: give one of the two")
    return (asked or DEFAULT_TYPE[request.bits]).upper()


def _planned_type(plan: Plan, request: Request) -> str:
    """The plan's; UsageError where another is asked for beside it, which has them all."""
    planned = str(plan.options.get("type"))
    asked = request.gguf.type or (None if request.bits is None else DEFAULT_TYPE[request.bits])
    if asked is not None and asked.upper() != planned:
        raise UsageError(f"the plan is one for {planned}, not for {asked}; leave --type out")
    pairs = [list(pair) for pair in request.gguf.overrides()]
    if pairs and pairs != plan.options.get("tensor_types"):
        raise UsageError("the plan has every tensor's type already; leave --tensor-type out")
    return planned


@dataclass
class _GgufJob:
    """A language model as described, with the importances to weigh its errors by."""

    source: Source
    request: Request
    kind: str
    model: LanguageModel
    importance: Imatrix | None
    layout: GgufLayout | None = None
    seconds: float = 0.0

    def plan(self) -> Plan:
        """Every tensor's type and bytes, and the file's exact size, without reading a weight."""
        given = self.request.plan
        if given is not None:
            made = replayed(self.source, self.model, given, self.importance)
            self.layout = layout_of(self.model, made, self.importance)
            if made.choice("file_bytes") != str(self.layout.nbytes):
                raise UsageError(
                    f"the plan says {made.choice('file_bytes') or 'no'} bytes, the file takes "
                    f"{self.layout.nbytes}; make the plan anew"
                )
            return made
        options = self.request.gguf
        # Decoding what was quantized loses nothing: export may do it unasked.
        requantize = options.allow_requantize or self.request.verb == "export"
        asked = GgufAsked(self.kind, options.overrides(), self.importance, requantize)
        plan = make_gguf_plan(self.source, self.model, asked)
        self.layout = layout_of(self.model, plan, self.importance)
        size = Choice("file_bytes", str(self.layout.nbytes), "the exact size of the file")
        return dataclasses.replace(plan, choices=(size,))

    def write(self, plan: Plan | None, path: Path) -> tuple[Change, ...]:
        assert plan is not None
        assert self.layout is not None
        require_room(path, self.layout.nbytes)
        began = time.monotonic()
        write_model(
            self.source,
            self.model,
            plan,
            self.layout,
            path,
            importance=self.importance,
            progress=self.request.progress,
        )
        self.seconds = time.monotonic() - began
        return ()  # the proof reads what became of each tensor

    def prove(
        self, plan: Plan | None, changes: tuple[Change, ...], written: Path, final: Path
    ) -> Proof:
        assert plan is not None
        options, progress = self.request.gguf, self.request.progress

        def write(reference: Path) -> int:
            return write_reference(self.source, self.model, reference, progress)

        proof = prove_gguf(
            self.request.verb,
            self.source,
            self.model,
            plan,
            written,
            final,
            depth=options.prove,
            text=None if options.text is None else Path(options.text),
            chunks=options.chunks,
            context=options.context,
            min_sqnr=self.request.min_sqnr,
            write_reference=write,
            chosen=options.pre_tokenizer is not None,
            progress=progress,
        )
        seconds = {"converting": self.seconds, **proof.artifact.get("seconds", {})}
        return dataclasses.replace(proof, artifact={**proof.artifact, "seconds": seconds})
