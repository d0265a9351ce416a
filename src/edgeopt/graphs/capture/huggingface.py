"""Hugging Face folders: the model class, its inputs and which of their dimensions are free."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgeopt.core import InputSpec
from edgeopt.errors import CaptureError, MissingExtraError, SourceError, UnsafeError
from edgeopt.graphs.capture.axes import Axis, Inputs
from edgeopt.graphs.capture.loaded import Loaded
from edgeopt.graphs.capture.outputs import Flat
from edgeopt.graphs.capture.pooling import SentenceModel, head_of, transformer_folder
from edgeopt.graphs.capture.reasons import one_line

__all__ = ["load_folder"]

#: Encoder-decoder models of which the encoder alone is captured, by the name of their main input.
_HALVES = "captured is the encoder alone: a decoder needs a loop around it"

_DEFAULT_IMAGE = 224


def load_folder(folder: Path, trust: bool) -> Loaded:
    """The folder's model in evaluation mode and float32, with its inputs.

    ``trust`` allows code that the folder carries to run; without it nothing but classes of the
    transformers package is used. Raises UnsafeError, SourceError or CaptureError.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "torch", "a Hugging Face folder") from None

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    inside = transformer_folder(folder)
    model = _model(transformers, inside, trust)
    notes: list[str] = []
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
        notes.append(_HALVES)
    # Only the encoders of an encoder-decoder pair keep their cache switched on by configuration.
    model = model.float().eval()
    config = model.config
    inputs = _inputs(model, config, inside)
    head = head_of(folder)
    names = tuple(s.name for s in inputs.specs)
    fixed: dict[str, Any] = {}
    if "use_cache" in inspect.signature(model.forward).parameters:
        fixed["use_cache"] = False
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
        attention=(model,) if hasattr(model, "set_attn_implementation") else (),
        recurrent=any(isinstance(m, nn.RNNBase) for m in model.modules()),
        notes=notes,
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


def _inputs(model: Any, config: Any, folder: Path) -> Inputs:
    """Inputs from the forward's arguments and the configuration, batch and lengths free."""
    arguments = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    specs: list[InputSpec] = []
    axes: dict[str, Axis] = {"batch": Axis("batch", 2, 3)}
    high: dict[str, int] = {}
    text = getattr(config, "text_config", None) or config
    if main == "input_ids" or ("input_ids" in arguments and "pixel_values" in arguments):
        specs += _text(arguments, text)
        axes["sequence"] = _sequence(text)
        high["input_ids"] = int(text.vocab_size)
        high["token_type_ids"] = int(getattr(text, "type_vocab_size", 0) or 1)
    if "pixel_values" in arguments:
        vision = getattr(config, "vision_config", None) or config
        height, width = _image_size(vision, folder)
        channels = int(getattr(vision, "num_channels", 3))
        specs.append(InputSpec("pixel_values", "float32", ("batch", channels, "height", "width")))
        # Sides differ at the check, so that an axis taken for the other one is found out.
        axes["height"] = Axis("height", height, height + 32, optional=True)
        axes["width"] = Axis("width", width, width + 64, optional=True)
    if main == "input_values":
        specs.append(InputSpec("input_values", "float32", ("batch", "samples")))
        axes["samples"] = Axis("samples", 16000, 12000)
    if main == "input_features":
        bins = getattr(config, "num_mel_bins", None)
        positions = getattr(config, "max_source_positions", None)
        if not isinstance(bins, int) or not isinstance(positions, int):
            raise CaptureError(
                f"{folder}: input_features of {type(model).__name__} has a size that its "
                f"configuration does not tell; give it with --input"
            )
        specs.append(InputSpec("input_features", "float32", ("batch", bins, 2 * positions)))
    if not specs:
        raise CaptureError(
            f"{folder}: {type(model).__name__} takes {main}, which has no known shape; known are "
            f"input_ids, pixel_values, input_values and input_features"
        )
    return Inputs(tuple(specs), axes, high, {})


def _text(arguments: Mapping[str, Any], config: Any) -> list[InputSpec]:
    names = ["input_ids"]
    if "attention_mask" in arguments:
        names.append("attention_mask")
    if "token_type_ids" in arguments and int(getattr(config, "type_vocab_size", 0) or 0) > 1:
        names.append("token_type_ids")
    return [InputSpec(n, "int64", ("batch", "sequence")) for n in names]


def _sequence(config: Any) -> Axis:
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0)
    limit = limit if isinstance(limit, int) and limit > 4 else 512
    return Axis("sequence", min(16, limit - 2), min(11, limit - 3))


def _image_size(config: Any, folder: Path) -> tuple[int, int]:
    """(height, width) that the folder's preprocessor gives, else the configuration's own."""
    path = folder / "preprocessor_config.json"
    found: Any = None
    if path.is_file():
        try:
            preprocessor = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SourceError(f"{path} is not JSON: {error}") from None
        cropped = preprocessor.get("do_center_crop", "crop_size" in preprocessor)
        found = preprocessor.get("crop_size" if cropped else "size") or preprocessor.get("size")
    own = getattr(config, "image_size", None)
    # Models with fixed position embeddings name their size; that binds, whatever is fed elsewhere.
    for candidate in (own, found, _DEFAULT_IMAGE):
        size = _pair(candidate)
        if size is not None:
            return size
    raise AssertionError("unreachable")


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        if "height" in value and "width" in value:
            return int(value["height"]), int(value["width"])
        value = value.get("shortest_edge")
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    if isinstance(value, int) and value > 0:
        return value, value
    return None
