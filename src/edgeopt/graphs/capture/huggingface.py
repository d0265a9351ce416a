"""Hugging Face folders: the model class, its inputs and which of their dimensions are free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edgeopt.core import Array, InputSpec
from edgeopt.errors import CaptureError
from edgeopt.graphs.capture.axes import Inputs
from edgeopt.graphs.capture.hf_inputs import derived_inputs
from edgeopt.graphs.capture.loaded import Loaded
from edgeopt.graphs.capture.plain import derive
from edgeopt.modules.outputs import Flat
from edgeopt.modules.pretrained import constants, encoder_of, with_head
from edgeopt.modules.pretrained import pretrained as as_stored
from edgeopt.modules.sentence_model import transformer_folder

__all__ = ["load_folder", "pretrained"]

#: Encoder-decoder models of which the encoder alone is captured, by the name of their main input.
_HALVES = "captured is the encoder alone: a decoder needs a loop around it"


def load_folder(
    folder: Path,
    trust: bool,
    specs: Sequence[InputSpec] = (),
    example: Mapping[str, Array] | None = None,
) -> Loaded:
    """The folder's model in evaluation mode and float32, with its inputs.

    Inputs are ``specs`` where given, else what the configuration tells, with ``example``'s values.
    ``trust`` allows code that the folder carries to run; without it nothing but classes of the
    transformers package is used. Raises UnsafeError, SourceError or CaptureError.
    """
    model, halved = encoder_of(pretrained(folder, trust))
    notes = [_HALVES] if halved else []
    fixed = constants(model)
    if specs:
        inputs = _given_inputs(model, fixed, specs, example)
    else:
        inputs = derived_inputs(model, model.config, transformer_folder(folder), example)
    names = tuple(s.name for s in inputs.specs)
    inner: nn.Module = model
    whole = with_head(folder, model)
    if whole is not None:
        if "attention_mask" not in names:
            raise CaptureError(f"{folder}: pooling needs an attention_mask, the model takes none")
        inner, fixed = whole, {}
    flat = Flat(inner, names, fixed).eval()

    return Loaded(
        call=flat,
        inputs=inputs,
        module=flat,
        attention=(model,) if _has_attention(model) else (),
        recurrent=any(isinstance(m, nn.RNNBase) for m in model.modules()),
        notes=notes,
    )


def pretrained(folder: Path, trust: bool = False) -> Any:
    """The folder's model in evaluation mode and float32. Errors as
    :func:`edgeopt.modules.pretrained.pretrained`."""
    return as_stored(folder, trust).float()


def _given_inputs(
    model: Any,
    fixed: Mapping[str, Any],
    specs: Sequence[InputSpec],
    example: Mapping[str, Array] | None,
) -> Inputs:
    def works(inputs: Inputs, feed: Mapping[str, Array]) -> str | None:
        flat = Flat(model, [s.name for s in inputs.specs], fixed)
        return Loaded(call=flat, inputs=inputs).complaint(feed)

    # Every argument of a transformers forward has a default: any of them may be left out.
    inputs, _ = derive(model, specs, example, works)
    return inputs


def _has_attention(model: Any) -> bool:
    """Whether attention's form can be chosen; every transformers model says that it can."""
    return hasattr(model, "set_attn_implementation") and any(
        "attention" in type(part).__name__.lower() for part in model.modules()
    )
