"""Hugging Face folders: the model class, its inputs and which of their dimensions are free."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edgeopt.core import Array, InputSpec
from edgeopt.errors import CaptureError, MissingExtraError, SourceError, UnsafeError
from edgeopt.graphs.capture.axes import Inputs
from edgeopt.graphs.capture.hf_inputs import derived_inputs
from edgeopt.graphs.capture.loaded import Loaded
from edgeopt.graphs.capture.outputs import Flat
from edgeopt.graphs.capture.plain import derive
from edgeopt.graphs.capture.pooling import SentenceModel, head_of, transformer_folder
from edgeopt.graphs.capture.reasons import one_line

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
    inside = transformer_folder(folder)
    model = pretrained(inside, trust)
    notes: list[str] = []
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
        notes.append(_HALVES)
    fixed: dict[str, Any] = {}
    if "use_cache" in inspect.signature(model.forward).parameters:
        fixed["use_cache"] = False
    if specs:
        inputs = _given_inputs(model, fixed, specs, example)
    else:
        inputs = derived_inputs(model, model.config, inside, example)
    head = head_of(folder)
    names = tuple(s.name for s in inputs.specs)
    inner: nn.Module = model
    if head is not None:
        modes, after = head
        if "attention_mask" not in names:
            raise CaptureError(f"{folder}: pooling needs an attention_mask, the model takes none")
        inner, fixed = SentenceModel(model, modes, after).eval(), {}
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
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
    """The model of the class that ``config.json`` names, in evaluation mode and float32.

    Raises UnsafeError where the folder brings its own code and ``trust`` is not given, SourceError
    where transformers has no such class, cannot load it or misses weights.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "torch", "a Hugging Face folder") from None

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return _model(transformers, folder, trust).float().eval()


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


def _model(transformers: Any, folder: Path, trust: bool) -> Any:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SourceError(f"{path} is not JSON: {error}") from None
    architectures = config.get("architectures") or []
    name = architectures[0] if architectures else ""
    cls: Any = getattr(transformers, name, None) if name else transformers.AutoModel
    own_code = bool(config.get("auto_map")) and cls is None
    if own_code and not trust:
        raise UnsafeError(
            f"{folder} brings its own code for {name}: give --trust-pickle to let it run"
        )
    if cls is None and not own_code:
        raise SourceError(
            f"{folder}: transformers {transformers.__version__} has no class {name}, "
            f"which config.json names; a newer transformers may"
        )
    if own_code:
        cls = transformers.AutoModel
    options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    if own_code:
        options["trust_remote_code"] = True
    try:
        model, info = cls.from_pretrained(str(folder), **options)
        missing = sorted(info["missing_keys"])
        if missing and all("pooler" in key for key in missing):
            model, info = cls.from_pretrained(str(folder), add_pooling_layer=False, **options)
            missing = sorted(info["missing_keys"])
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise SourceError(f"{folder}: transformers cannot load it: {one_line(error)}") from None
    if missing:
        raise SourceError(
            f"{folder}: {len(missing)} weights of {name or 'the model'} are not in the folder "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"
        )
    return model
