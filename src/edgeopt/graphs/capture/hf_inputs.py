"""What a Hugging Face model takes, by its forward's arguments and its configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt.core import Array, InputSpec
from edgeopt.errors import InputsError, SourceError
from edgeopt.graphs.capture.axes import Axis, Inputs

__all__ = ["derived_inputs", "fitted"]

_DEFAULT_IMAGE = 224


def derived_inputs(
    model: Any, config: Any, folder: Path, example: Mapping[str, Array] | None
) -> Inputs:
    """Inputs from the forward's arguments and the configuration, batch and lengths free.

    Raises InputsError with the line to add where the configuration does not tell a shape.
    """
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
        bins, length = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
        if isinstance(bins, int) and isinstance(length, int):  # a spectrogram, not a waveform
            specs.append(InputSpec("input_values", "float32", ("batch", length, bins)))
        else:
            specs.append(InputSpec("input_values", "float32", ("batch", "samples")))
            axes["samples"] = Axis("samples", 16000, 12000)
    if main == "input_features":
        bins = getattr(config, "num_mel_bins", None)
        positions = getattr(config, "max_source_positions", None)
        if not isinstance(bins, int) or not isinstance(positions, int):
            raise InputsError(
                f"{folder}: nothing tells the size of {type(model).__name__}'s input_features; "
                f"give it, for example: --input input_features:float32[1,80,3000]"
            )
        specs.append(InputSpec("input_features", "float32", ("batch", bins, 2 * positions)))
    if not specs:
        raise InputsError(
            f"{folder}: nothing tells the shape of {type(model).__name__}'s {main}; give it, for "
            f"example: --input {main}:float32[1,...]"
        )
    return fitted(Inputs(tuple(specs), axes, high, {}), example)


def fitted(inputs: Inputs, example: Mapping[str, Array] | None) -> Inputs:
    """The same with the values of an example, and its lengths in place of the usual ones."""
    given = {s.name: (example or {})[s.name] for s in inputs.specs if s.name in (example or {})}
    axes = dict(inputs.axes)
    for spec in inputs.specs:
        array = given.get(spec.name)
        if array is None:
            continue
        if array.ndim != len(spec.shape):
            raise InputsError(
                f"the data for {spec.name} has {array.ndim} dimensions {list(array.shape)}, "
                f"the model takes {spec}"
            )
        for dim, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(dim, str) and dim != "batch" and size >= 2:
                axis = axes[dim]
                second = axis.second if axis.second != size else axis.first
                axes[dim] = replace(axis, first=int(size), second=second)
    return replace(inputs, axes=axes, given=given)


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
