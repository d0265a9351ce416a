"""Hugging Face folders as torch modules, as transformers and sentence-transformers load them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from edgeopt.errors import MissingExtraError, SourceError, UnsafeError
from edgeopt.modules.reasons import one_line
from edgeopt.modules.sentence_model import SentenceModel, head_of, transformer_folder

__all__ = ["constants", "encoder_of", "pretrained", "with_head"]


def pretrained(folder: Path, trust: bool = False) -> Any:
    """The model of the class that ``config.json`` names, in evaluation mode and its own dtype.

    ``trust`` allows code that the folder carries to run; without it nothing but classes of the
    transformers package is used. Raises UnsafeError where the folder brings its own code and
    ``trust`` is not given, SourceError where transformers has no such class, cannot load it or
    misses weights.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "torch", "a Hugging Face folder") from None

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return _model(transformers, transformer_folder(folder), trust).eval()


def encoder_of(model: Any) -> tuple[Any, bool]:
    """The part of ``model`` that one call runs, and whether that is its encoder alone: a decoder
    needs a loop around it."""
    if getattr(model.config, "is_encoder_decoder", False):
        return model.get_encoder(), True
    return model, False


def constants(model: Any) -> dict[str, Any]:
    """Arguments that every call gets: no cache of keys and values."""
    return (
        {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    )


def with_head(folder: Path, model: Any) -> SentenceModel | None:
    """``model`` with the pooling and what follows it in a sentence-transformers folder, in the
    model's dtype; None for other folders. Raises CaptureError for a module that is not known."""
    head = head_of(folder)
    if head is None:
        return None
    modes, after = head
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    whole: SentenceModel = SentenceModel(model, modes, after).eval()
    whole.head.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), None))
    return whole


def _model(transformers: Any, folder: Path, trust: bool) -> Any:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SourceError(f"{path} is not JSON: {error}") from None
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(n, str) for n in architectures):
        shown = str(architectures)[:60]
        raise SourceError(f"{path}: architectures is {shown}, not a list of names")
    name = architectures[0] if architectures else ""
    cls: Any = getattr(transformers, name, None) if name else transformers.AutoModel
    if name and not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        cls = None  # the library has more than models
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
    # Said either way: left out, transformers may ask on standard input.
    options: dict[str, Any] = {
        "local_files_only": True,
        "output_loading_info": True,
        "trust_remote_code": own_code,
    }
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
