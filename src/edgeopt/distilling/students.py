"""Students: made from their teacher, built by the user's code, or read from a file."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import nn

from edgeopt.core import Array
from edgeopt.core.given import is_given
from edgeopt.core.names import near
from edgeopt.distilling.interface import require_alike
from edgeopt.distilling.pretrained_students import is_resizable, shrink_pretrained
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.modules.loading import (
    argument_names,
    build,
    fill,
    needs_trust,
    unpickled,
)
from edgeopt.modules.model import TorchModel
from edgeopt.modules.pretrained import constants, encoder_of, pretrained, with_head
from edgeopt.modules.reasons import attempt, one_line
from edgeopt.pruning.result import Pruning

__all__ = ["Shrink", "load_student", "make_student", "parse_shrink"]

Feeds = Iterable[Mapping[str, Array]]

#: Kinds of source that hold tensors by name, and nothing to run them with.
_WEIGHTS = ("torch-state-dict", "torch-checkpoint", "safetensors")


class Shrink(NamedTuple):
    """The shares of its teacher's width and depth that a student keeps; None keeps all."""

    width: float | None = None
    depth: float | None = None


def parse_shrink(text: str) -> Shrink:
    """``width=0.5,depth=0.5``, either or both. Raises UsageError for anything else."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in ("width", "depth"):
            hint = near(name, ("width", "depth"))
            raise UsageError(f"--shrink {text}: {name!r} cannot be shrunk; {hint}")
        if name in shares:
            raise UsageError(f"--shrink {text}: {name} is given twice")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 < share < 1:
            raise UsageError(
                f"--shrink {text}: {name} is {value!r}; give the share that stays, above 0 and "
                "below 1"
            )
        shares[name] = share
    return Shrink(**shares)


def make_student(
    teacher: TorchModel,
    *,
    width: float | None = None,
    depth: float | None = None,
    feeds: Feeds = (),
    seed: int = 0,
) -> tuple[TorchModel, Pruning]:
    """A smaller copy of the teacher, which is left as it is, and what became smaller.

    ``width`` and ``depth`` are the shares that stay, above 0 and below 1. A transformers model gets
    a smaller configuration (:func:`~edgeopt.distilling.pretrained_students.shrink_pretrained`); of
    any other, blocks that change their input least go first (``feeds`` measure that), then
    channels.

    Raises UsageError where neither is given, SourceError where nothing can be made smaller, and
    InputsError where the student no longer gives what its teacher does.
    """
    if width is None and depth is None:
        raise UsageError("a student needs a width or a depth below its teacher's; give one of them")
    if is_resizable(teacher.module):
        return shrink_pretrained(teacher, width=width, depth=depth, seed=seed)
    module, error = attempt(lambda: copy.deepcopy(teacher.module))
    if module is None:
        why = one_line(error) if error is not None else "nothing came of it"
        raise SourceError(f"{type(teacher.module).__name__} cannot be copied: {why}")
    student = replace(teacher, module=module)
    found: list[Pruning] = []
    if depth is not None:
        found.append(_shrink_depth(student, depth, feeds))
    if width is not None:
        found.append(_shrink_width(student, width))
    require_alike(teacher, student)
    cuts = tuple(cut for pruning in found for cut in pruning.cuts)
    notes = tuple(note for pruning in found for note in pruning.notes)
    return student, Pruning("shrink", cuts, notes)


def _shrink_depth(student: TorchModel, depth: float, feeds: Feeds) -> Pruning:
    from edgeopt.pruning.depth.prune import prune_depth

    return prune_depth(student, ratio=1 - depth, feeds=feeds)


def _shrink_width(student: TorchModel, width: float) -> Pruning:
    from edgeopt.pruning.channels.prune import shrink_width

    return shrink_width(student, 1 - width)


def load_student(
    spec: str, teacher: TorchModel, *, code: str | None = None, trust: bool = False
) -> TorchModel:
    """The student that ``--student`` names, in float32, taking and giving what its teacher does.

    ``spec`` is ``module:callable``, a pruned ``.pt`` (an exported program), a pickled module,
    weights of the module that ``code`` (``module:callable``) builds, or a Hugging Face folder.
    ``trust`` lets a file or folder run the code that it carries.

    Raises UsageError, SourceError or UnsafeError where it cannot be loaded, InputsError where it
    does not match its teacher.
    """
    path = Path(spec)
    if is_given(spec):
        student = _called_like(build(spec, "--student"), teacher)
    elif path.exists():
        student = _from_file(path, teacher, code, trust)
    elif ":" in spec:
        student = _called_like(build(spec, "--student"), teacher)
    else:
        raise UsageError(
            f"--student {spec} is no file or folder, and not of the form package.module:callable"
        )
    student.module.float().eval()
    require_alike(teacher, student)
    return student


def _from_file(path: Path, teacher: TorchModel, code: str | None, trust: bool) -> TorchModel:
    source = open_source(path)
    if source.kind == "hf-folder":
        return _from_folder(path, teacher, trust)
    if source.kind == "torch-exported":
        return _from_program(path, teacher, code, trust)
    if source.kind == "torch-module":
        needs_trust(path, source.kind, trust)
        return _called_like(unpickled(path), teacher)
    if source.kind not in _WEIGHTS:
        raise SourceError(f"--student {path} is {source.kind}, which cannot be trained")
    if code is None:
        raise UsageError(f"--student {path}: weights have no code; give it with --model")
    return _called_like(fill(build(code), source.weights).module, teacher)


def _from_program(path: Path, teacher: TorchModel, code: str | None, trust: bool) -> TorchModel:
    """The code fitted to the program's sizes, where it is the program's and what was written beside
    it is there: its BatchNorm and dropout learn too. Else the program itself, as it runs."""
    from edgeopt.modules.program import description_path, load_trainable, state_path
    from edgeopt.modules.state_dict import read_state
    from edgeopt.pruning.rebuild import rebuild

    program = load_trainable(path, trust=trust)
    if code is None or not (state_path(path).is_file() and description_path(path).is_file()):
        return program
    try:
        description = json.loads(description_path(path).read_text(encoding="utf-8"))
        module = rebuild(build(code), read_state(state_path(path)), description)
    except (ValueError, SourceError) as error:
        note = f"{path.name} is trained as it runs, without its code: {one_line(error)}"
        return replace(program, notes=(*program.notes, note))
    return _called_like(module, teacher)


def _called_like(module: nn.Module, teacher: TorchModel) -> TorchModel:
    """The module as a model with its teacher's inputs, by name where it has arguments so called."""
    names = {spec.name for spec in teacher.inputs}
    known = {name for part in argument_names(module) for name in part}
    fixed = {name: value for name, value in teacher.fixed.items() if name in known}
    return TorchModel(
        module, teacher.inputs, teacher.example, positional=not names <= known, fixed=fixed
    )


def _from_folder(folder: Path, teacher: TorchModel, trust: bool) -> TorchModel:
    inner, _ = encoder_of(pretrained(folder, trust))
    whole = with_head(folder, inner)
    module, fixed = (inner, constants(inner)) if whole is None else (whole, {})
    return TorchModel(module, teacher.inputs, teacher.example, fixed=fixed, folder=folder)
