"""The front door: whatever the user handed over becomes a :class:`~edgeopt.core.Source`."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from edgeopt.core import Source
from edgeopt.errors import SourceError
from edgeopt.files.reading import read_head, reading
from edgeopt.files.sniff import SUPPORTED, FormatModule, foreign, recognise

__all__ = ["open_source"]

#: Files in a folder that are never taken for the one model in it.
_BESIDE = (".json", ".txt", ".md", ".py", ".csv", ".yaml", ".yml", ".npy", ".npz", ".jinja")


#: How hubs name models: an owner and a name.
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def open_source(path: str | os.PathLike[str]) -> Source:
    """Describe the model at ``path``, recognised by its content, without reading any tensor.

    ``path`` is a file of a known format, a Hugging Face folder, or a folder that holds exactly one
    model file. Loads neither torch nor onnx and runs no code that the file carries. Raises
    SourceError (missing, empty, unreadable, no model) or FormatError (a broken file).
    """
    path = Path(path)
    if _HUB_ID.fullmatch(str(path)) and not path.parent.exists():
        raise SourceError(
            f"{path}: no such file or folder; if it is a model's name on a hub, download it first"
            f" (hf download {path} --local-dir FOLDER) and give the folder"
        )
    with reading(path):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _open_folder(path)
        return _module_for(path).describe(path)


def _module_for(path: Path) -> FormatModule:
    head = read_head(path)
    if not head:
        raise SourceError(f"{path}: is empty (0 bytes); was the download or the save cut short?")
    module = recognise(path, head)
    if module is not None:
        return module
    known = foreign(path, head)
    if known is not None:
        raise SourceError(f"{path}: is {known.what}; {known.remedy}")
    raise SourceError(
        f"{path}: is of no known format (begins with {head[:8].hex(' ')}); "
        f"edgeopt opens {SUPPORTED}"
    )


def _open_folder(path: Path) -> Source:
    module = recognise(path, b"", folder=True)
    if module is not None:
        return module.describe(path)
    if (path / "saved_model.pb").exists():
        raise SourceError(
            f"{path}: is a TensorFlow SavedModel; convert it to ONNX first with "
            f"`python -m tf2onnx.convert --saved-model {path} --output model.onnx`"
        )
    if path.name.endswith(".mlpackage") and (path / "Manifest.json").exists():
        raise SourceError(f"{path}: is a CoreML package; give the model it was made from")
    if (path / "adapter_config.json").is_file():
        raise SourceError(
            f"{path}: is a LoRA adapter, which changes another model's weights; merge it into its"
            " base first (peft: AutoPeftModelForCausalLM, merge_and_unload, save_pretrained)"
        )
    if (path / "model_index.json").is_file():
        raise SourceError(
            f"{path}: is a diffusers pipeline of several models; give one of its folders"
        )
    models = _models_in(path)
    if not models and any((path / name).is_file() for name in _TOKENIZERS):
        raise SourceError(f"{path}: holds a tokenizer and no weights; is the download complete?")
    if len(models) == 1:
        return models[0][1].describe(models[0][0])
    if models:
        names = ", ".join(file.name for file, _ in models[:5])
        more = f" and {len(models) - 5} more" if len(models) > 5 else ""
        raise SourceError(
            f"{path}: holds {len(models)} model files ({names}{more}) and no config.json; "
            "give one of them"
        )
    raise SourceError(
        f"{path}: is a folder with no model in it; looked for config.json with model.safetensors "
        "or pytorch_model.bin (whole or with an index), modules.json, and a single model file"
    )


_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt")


def _models_in(path: Path) -> list[tuple[Path, FormatModule]]:
    """The model files directly in a folder; an index of shards stands for its shards."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    indices = [file for file in files if file.name.endswith(".safetensors.index.json")]
    candidates = indices or [file for file in files if not file.name.endswith(_BESIDE)]
    found = []
    for file in candidates:
        head = read_head(file)
        module = recognise(file, head) if head else None
        if module is not None:
            found.append((file, module))
    return found
