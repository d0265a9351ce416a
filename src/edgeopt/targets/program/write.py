"""What prune and distill write: a program, a folder or sparse weights, kept only if proven."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Progress, Proof, Source, Storage, Weight
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.atomic import checked_folder, checked_output, writing_folder, writing_group
from edgeopt.targets.keep import NotProven, default_path, not_kept
from edgeopt.targets.onnx.source import Prepared
from edgeopt.targets.program.prove import prove_shrunk
from edgeopt.targets.program.shrunk import Requirements, Shrunk
from edgeopt.targets.written import FOLDER_DOCUMENT, sign_document

if TYPE_CHECKING:
    from torch import nn

    from edgeopt.modules.counting import Counts
    from edgeopt.modules.model import TorchModel
    from edgeopt.pruning.result import Pruning
    from edgeopt.pruning.vocabulary.prune import VocabularyPlan

__all__ = ["FORMATS", "Destination", "Result", "format_for", "keep_proven"]

#: What --to calls a format -> the suffix of its file (none: a folder).
FORMATS: Mapping[str, str] = {"pt": ".pt", "folder": "", "safetensors": ".safetensors"}

#: Methods after which a folder's own class no longer fits its weights.
_RESHAPES = frozenset({"channels"})

#: Methods that leave shapes as they were: what they make loads into the source's own code.
_SPARSE = frozenset({"magnitude", "wanda", "sparsegpt", "lottery"})

#: Suffixes that tell people (and other tools) of another format.
_FOREIGN = frozenset({".onnx", ".gguf", ".tflite", ".json", ".bin", ".npz"})

#: What distill calls its ways to a student.
_DISTILLED = frozenset({"shrink", "student"})

_CALLED: Mapping[str, str] = {".pt": "pt", ".pt2": "pt", ".safetensors": "safetensors"}

_DESCRIPTION_VERSION = 1


@dataclass(frozen=True)
class Destination:
    """Where the result goes, and as what. ``tag`` is what its default name ends in."""

    source: Source
    out: str | Path | None
    format: str
    tag: str

    def check(self) -> Path:
        """The name of the result. Raises OutputError where it cannot be written."""
        sources = [self.source.path, *self.source.files]
        asked = self.out
        if asked is None:
            asked = default_path(self.source, self.tag, FORMATS[self.format])
        if self.format == "folder":
            return checked_folder(asked, sources)
        final = checked_output(asked, sources)
        if self.format == "pt":
            from edgeopt.modules.program import description_path, state_path

            for beside in (description_path(final), state_path(final)):
                checked_output(beside, sources)
        return final


@dataclass(frozen=True)
class Result:
    """What is to be written: the model, what was done to it, and what goes beside it."""

    model: TorchModel
    prunings: tuple[Pruning, ...] = ()
    vocabulary: VocabularyPlan | None = None
    training: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def format_for(source: Source, method: str, to: str | None, out: str | Path | None) -> str:
    """What to write: as asked, as ``out`` is called, else a folder for a folder.

    Raises UsageError where the source or the method has no such form.
    """
    folder = source.kind == "hf-folder"
    suffix = "" if out is None else Path(out).suffix
    called = _CALLED.get(suffix)
    if to is None:
        to = called
    if suffix in _FOREIGN:
        raise UsageError(f"{out}: nothing {suffix} is written; use .pt, .safetensors or a folder")
    if to in FORMATS and called not in (None, to):
        raise UsageError(f"{out}: is called {suffix}, and --to {to} is another format; give one")
    if method == "vocabulary" and not folder:
        raise UsageError(
            f"--method vocabulary rewrites a tokenizer too, and {source.path} is no Hugging Face "
            "folder; give one"
        )
    if to is None:
        to = "folder" if folder and method not in _RESHAPES else "pt"
    if to not in FORMATS:
        raise UsageError(f"--to {to}: use {', '.join(FORMATS)}")
    if to == "folder" and not folder:
        raise UsageError(f"--to folder: {source.path} is no Hugging Face folder; use --to pt")
    if to == "folder" and method in _RESHAPES:
        raise UsageError(
            f"--to folder: after --method {method} no class of transformers fits; use --to pt"
        )
    if to == "safetensors" and method not in _SPARSE:
        raise UsageError(
            f"--to safetensors: stores zeros in a bit each, and {_made_by(method)} makes none; "
            f"use --to {'folder' if folder and method not in _RESHAPES else 'pt'}"
        )
    if method == "vocabulary" and to != "folder":
        raise UsageError("--method vocabulary writes a folder, its tokenizer is part of it")
    return to


def _made_by(method: str) -> str:
    return "distill" if method in _DISTILLED else f"--method {method}"


def keep_proven(
    verb: str,
    recipe: Destination,
    result: Result,
    prepared: Prepared,
    workdir: Path,
    asked: Requirements,
    *,
    before: Counts,
    sha256: str,
    force: bool,
    progress: Progress | None = None,
) -> Proof:
    """Write the result in a temporary place, prove it, and keep it if it is proven."""
    final = recipe.check()
    sources = [recipe.source.path, *recipe.source.files]
    work = _Writing(verb, recipe, result, prepared, workdir, asked, before, sha256, progress)
    proof: Proof | None = None
    try:
        if recipe.format == "folder":
            with writing_folder(final, source_paths=sources) as folder:
                proof = work.folder(folder, final)
                _require(proof, force)
        elif recipe.format == "safetensors":
            with writing_group([final], source_paths=sources) as (temporary,):
                proof = work.sparse(temporary, final)
                _require(proof, force)
        else:
            from edgeopt.modules.program import description_path, state_path

            targets = [description_path(final), state_path(final), final]
            with writing_group(targets, source_paths=sources, named=True) as (
                about,
                state,
                program,
            ):
                proof = work.program(about, state, program, final)
                _require(proof, force)
    except NotProven:
        assert proof is not None
        proof = not_kept(proof)
    return proof


def _require(proof: Proof, force: bool) -> None:
    if proof.verdict.failed and not force:
        raise NotProven


@dataclass(frozen=True)
class _Writing:
    verb: str
    recipe: Destination
    result: Result
    prepared: Prepared
    workdir: Path
    asked: Requirements
    before: Counts
    sha256: str
    progress: Progress | None

    def program(self, about: Path, state: Path, program: Path, final: Path) -> Proof:
        from edgeopt.modules.program import write_description, write_program
        from edgeopt.modules.state_dict import write_state

        model = self.result.model
        notes = write_program(model, program)
        write_state(model.module, state)
        write_description(self._description(), about)
        sign_document(program, about, [state])
        usage = _PROGRAM_USAGE.format(name=final.name, inputs=_inputs(model))
        files = (program, state, about)
        return self._prove(program, final, files, "torch-exported", notes, usage, weigh=(program,))

    def folder(self, folder: Path, final: Path) -> Proof:
        from edgeopt.modules.folder import fill_folder, folder_complaint
        from edgeopt.modules.program import write_description

        model = self.result.model
        if (complaint := folder_complaint(model)) is not None:
            raise SourceError(complaint)
        plan = self.result.vocabulary
        notes = fill_folder(model, folder, {} if plan is None else plan.files)
        about = folder / FOLDER_DOCUMENT
        write_description(self._description(), about)
        sign_document(folder, about, sorted(p for p in folder.rglob("*") if p.is_file()))
        usage = _FOLDER_USAGE.format(kind=_folder_class(model), name=final.name)
        files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
        return self._prove(folder, final, files, "hf-folder", notes, usage, weigh=files)

    def sparse(self, temporary: Path, final: Path) -> Proof:
        """Weights alone: the graph that proves them has its weights from the written file."""
        from edgeopt.files.sparse_write import write_sparse
        from edgeopt.files.weights import load_weights
        from edgeopt.modules.loading import fill_in, tensor_of
        from edgeopt.modules.program import write_program

        model = self.result.model
        metadata = {"edgeopt_pruned": json.dumps(self._description(), sort_keys=True)}
        write_sparse(_weights(model.module), temporary, metadata)
        read = load_weights(temporary)
        shapes = {name: tuple(read.describe(name).shape) for name in read}
        fill_in(model.module, shapes, lambda name: tensor_of(read[name], read.describe(name).dtype))
        runnable = self.workdir / "sparse.pt"
        notes = write_program(model, runnable)
        usage = _SPARSE_USAGE.format(name=final.name)
        return self._prove(
            temporary,
            final,
            (temporary,),
            "safetensors",
            notes,
            usage,
            weigh=(temporary,),
            runnable=runnable,
        )

    def _prove(
        self,
        written: Path,
        final: Path,
        files: tuple[Path, ...],
        kind: str,
        notes: tuple[str, ...],
        usage: str,
        *,
        weigh: tuple[Path, ...],
        runnable: Path | None = None,
    ) -> Proof:
        from edgeopt.modules.counting import count

        result = self.result
        after = count(result.model)
        made = Shrunk(
            before=self.before,
            after=after,
            prunings=result.prunings,
            written=written,
            final=final,
            files=files,
            weighed=weigh,
            format=kind,
            training=result.training,
            details=result.details,
            notes=(*result.model.notes, *notes),
            usage=usage,
            runnable=runnable,
            vocabulary=result.vocabulary,
            # A program holds the graph too, which a state dict does not; zeros alone are as many
            # bytes as any number.
            smaller=kind == "safetensors"
            or (kind == self.recipe.source.kind and after.nbytes < self.before.nbytes),
        )
        return prove_shrunk(
            self.verb,
            self.prepared,
            made,
            self.workdir,
            self.asked,
            sha256=self.sha256,
            # This process wrote the file a moment ago; whether others must trust it, notes say.
            trust_pickle=True,
            progress=self.progress,
        )

    def _description(self) -> dict[str, Any]:
        """What was done, for :func:`edgeopt.pruning.rebuild.rebuild` and for people."""
        from edgeopt.pruning.rebuild import sizes_of

        return {
            "edgeopt_pruned": _DESCRIPTION_VERSION,
            "verb": self.verb,
            "source_sha256": self.sha256,
            "sizes": sizes_of(self.result.model.module),
            "prunings": [
                {
                    "method": pruning.method,
                    "cuts": [dataclasses.asdict(cut) for cut in pruning.cuts],
                }
                for pruning in self.result.prunings
            ],
        }


def _weights(module: nn.Module) -> list[Weight]:
    """The state dict as tensors to write, those that share their numbers told as such."""
    import torch

    found = []
    for name, tensor in module.state_dict().items():
        array = tensor.detach().cpu().contiguous()
        dtype = str(array.dtype).removeprefix("torch.")
        plain = array.view(torch.int16) if array.dtype == torch.bfloat16 else array
        nbytes = plain.numel() * plain.element_size()
        storage = Storage(str(tensor.data_ptr()), 0, nbytes) if nbytes else None
        found.append(
            Weight(name, tuple(array.shape), dtype, nbytes, _reader(plain.numpy()), storage=storage)
        )
    return found


def _reader(array: Any) -> Callable[[int, int], Any]:
    return lambda lo, hi: array[lo:hi] if array.ndim else array


def _folder_class(model: TorchModel) -> str:
    """The class of transformers that has the model's own head; AutoModel gives it none."""
    for part in model.module.modules():
        kind = type(part)
        if hasattr(part, "save_pretrained") and kind.__module__.startswith("transformers."):
            return kind.__name__
    return "AutoModel"


def _inputs(model: TorchModel) -> str:
    """Zeros to call the program with, as code."""
    parts = []
    for spec in model.inputs:
        shape = list(model.example[spec.name].shape)
        parts.append(f"torch.zeros({shape}, dtype=torch.{spec.dtype})")
    return ", ".join(parts)


_PROGRAM_USAGE = """\
import torch
model = torch.export.load("{name}").module()
answers = model({inputs})"""

_FOLDER_USAGE = """\
from transformers import {kind}
model = {kind}.from_pretrained("{name}")"""

_SPARSE_USAGE = """\
import edgeopt
edgeopt.load_into(module, "{name}")  # dense again, zeros and all"""
