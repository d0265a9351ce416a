"""A source as a torch module in this process, with feeds for it: what prune and distill work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.core import Source
from edgeopt.core.packages import is_installed
from edgeopt.data.inputspec import parse_inputs
from edgeopt.data.samples import Samples, load
from edgeopt.data.synthetic import Hint, synthetic
from edgeopt.errors import InputsError, MissingExtraError, SourceError, UsageError
from edgeopt.targets.onnx.source import example_of, has_graph

if TYPE_CHECKING:
    from edgeopt.modules.model import TorchModel

__all__ = ["Opened", "open_torch", "require_torch"]

_NO_MODULE = {
    "onnx": "an ONNX graph has no torch module; give the model that it came from",
    "gguf": "a GGUF file has no torch module; give the folder that it came from",
    "torchscript": "TorchScript cannot be changed; give the code with --model",
}


@dataclass(frozen=True)
class Opened:
    """A model in memory, and the samples it was given (``None``: none were, ``synthetic`` then)."""

    source: Source
    model: TorchModel
    samples: Samples | None
    synthetic: Samples


def require_torch(purpose: str) -> None:
    """Raises MissingExtraError without torch."""
    if not is_installed("torch"):
        raise MissingExtraError("torch", "train", purpose)


def open_torch(
    source: Source,
    workdir: Path,
    *,
    data: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    shapes: str | None = None,
    purpose: str = "pruning",
) -> Opened:
    """Load the source as a module that can be changed and trained.

    ``shapes``: other data (to train on), whose first sample tells shapes where ``data`` is None.

    Raises SourceError, UnsafeError, InputsError or CaptureError as capturing does, UsageError for
    weights without code, MissingExtraError without torch.
    """
    if model is None and source.kind in _NO_MODULE:
        raise SourceError(f"{source.path}: {_NO_MODULE[source.kind]}")
    if not has_graph(source, model):
        raise UsageError(
            f"{source.path}: weights have no code; give it with --model package.module:callable"
        )
    require_torch(purpose)
    from edgeopt.files.open import open_source
    from edgeopt.graphs.capture.axes import feed
    from edgeopt.graphs.capture.loaders import CaptureJob
    from edgeopt.graphs.capture.loaders import load as load_module
    from edgeopt.modules.exported import ProgramModule
    from edgeopt.modules.model import TorchModel
    from edgeopt.modules.outputs import Flat

    raw = load(data) if data is not None else None
    if raw is not None and next(iter(raw), None) is None:
        raise InputsError(f"{raw.label} gives no samples; at least one is needed")
    first = raw if raw is not None or shapes is None else load(shapes)
    job = CaptureJob(
        source.path,
        source.kind,
        workdir,
        model,
        trust_pickle,
        parse_inputs(tuple(inputs)),
        example_of(first),
        21,
        first is not None and first.bare,
    )
    loaded = load_module(job, lambda: open_source(source.path))
    flat = loaded.module
    if isinstance(flat, Flat):
        module, positional, fixed = flat.inner, flat.positional, flat.fixed
    else:  # TorchScript that --model stands in for has none of its own
        module, positional, fixed = flat, True, {}
    if isinstance(module, ProgramModule):
        module = module.trainable()
    example = feed(loaded.inputs)
    made = TorchModel(
        module,
        loaded.inputs.specs,
        example,
        positional,
        fixed,
        source.path if source.kind == "hf-folder" else None,
        tuple(loaded.notes),
    )
    samples = None if raw is None else raw.fit(loaded.inputs.specs)
    sizes = {name: axis.first for name, axis in loaded.inputs.axes.items()}
    hints = {name: Hint(0, high) for name, high in loaded.inputs.high.items()}
    made_up = synthetic(loaded.inputs.specs, hints, count=8, seed=0, sizes=sizes)
    return Opened(source, made, samples, made_up)
