"""A changed transformers model as a Hugging Face folder: what it was, with its weights of now.

The weights are written by transformers itself, in the source's dtype. ``config.json`` is the
source's with what has changed in the model's configuration; every other file is copied, but for
weights of other formats, which would be those of the old model. The folder is loaded again before
it takes its name: a change that the configuration cannot express is found there, not by its user.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import EdgeoptError, MissingExtraError, OutputError, SourceError
from edgeopt.files.atomic import writing_folder
from edgeopt.files.reading import read_json, reading
from edgeopt.modules.model import TorchModel
from edgeopt.modules.outputs import flatten
from edgeopt.modules.pretrained import pretrained, with_head
from edgeopt.modules.sentence_model import SentenceModel, transformer_folder

__all__ = ["folder_complaint", "inner_model", "write_folder"]

#: Weights, whoever reads them; those that the model has now are written anew.
_WEIGHTS = frozenset(
    {
        *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".npz"),
        *(".onnx", ".onnx_data", ".data", ".gguf", ".tflite", ".mlmodel", ".xml", ".pb"),
    }
)
_INDEX = ".index.json"

#: Keys of a configuration that say how it was saved, not what the model is.
_UNSAID = frozenset(
    {
        *("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
        *("use_cache", "_attn_implementation", "attn_implementation", "auto_map"),
    }
)

_ELSE = "write it as a program, -o OUT.pt"


def inner_model(model: TorchModel) -> Any:
    """The transformers model, out of the pooling around it. SourceError where there is none."""
    inner = model.module.transformer if isinstance(model.module, SentenceModel) else model.module
    if model.folder is None or not hasattr(inner, "save_pretrained"):
        raise SourceError("the source is no Hugging Face folder, so neither can the result be one")
    return inner


def folder_complaint(model: TorchModel) -> str | None:
    """Why the model cannot be a Hugging Face folder (any more); None where it seems to be one.

    Looks at names and shapes only: those that transformers would make of the configuration as it
    is now. Nothing is written, no memory taken.
    """
    try:
        inner = inner_model(model)
    except SourceError as error:
        return str(error)
    assert model.folder is not None
    named = read_json(transformer_folder(model.folder) / "config.json").get("architectures") or []
    own = type(inner).__name__
    if named and named[0] != own:
        return f"the folder holds a {named[0]}, of which {own} is a part; {_ELSE}"
    with torch.device("meta"):
        try:
            made = type(inner)(inner.config)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            return f"transformers makes no {own} of the changed configuration ({error}); {_ELSE}"
    wanted = {name: tuple(t.shape) for name, t in made.state_dict().items()}
    held = {name: tuple(t.shape) for name, t in inner.state_dict().items()}
    for name in sorted(held.keys() | wanted.keys()):
        # A pooler that the folder lacks is left out when it is loaded too.
        if held.get(name) != wanted.get(name) and not (name not in held and "pooler" in name):
            return (
                f"{name} is {_shape(held.get(name))}, and {own} can only have"
                f" {_shape(wanted.get(name))}; {_ELSE}"
            )
    return None


def write_folder(
    model: TorchModel,
    out: Path,
    *,
    files: Mapping[str, bytes | None] | None = None,
) -> tuple[str, ...]:
    """Write ``model`` as the Hugging Face folder ``out``, whole or not at all; notes come back.

    ``files`` replace (or, as None, leave out) files beside ``config.json``, by name: a tokenizer's.

    Raises OutputError for a folder that cannot be written, SourceError for a model that is none of
    transformers (any more), or that loads again as another.
    """
    complaint = folder_complaint(model)
    if complaint is not None:
        raise SourceError(complaint)
    assert model.folder is not None
    with writing_folder(out, source_paths=[model.folder]) as folder:
        return fill_folder(model, folder, files or {})


def fill_folder(model: TorchModel, out: Path, files: Mapping[str, bytes | None]) -> tuple[str, ...]:
    """Like :func:`write_folder` into an empty folder that is there, and may be left half full."""
    assert model.folder is not None
    inner = inner_model(model)
    root = transformer_folder(model.folder)
    home = out / root.relative_to(model.folder)
    own_code = type(inner).__module__.startswith("transformers_modules")
    notes = _copy(model.folder, out, {home / name for name in files}, own_code)
    home.mkdir(parents=True, exist_ok=True)
    kind = _stored_dtype(inner, root)
    _write_weights(inner, home, kind)
    for name in ("config.json", "generation_config.json"):
        (home / name).unlink(missing_ok=True)
        if (root / name).is_file():
            shutil.copyfile(root / name, home / name)
    config = changed_config(inner, root)
    if not own_code:
        config.pop("auto_map", None)
    (home / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    mode = (home / "config.json").stat().st_mode
    for file in home.glob("model*.safetensors"):
        file.chmod(mode)  # safetensors lets nobody else read what it writes
    if isinstance(model.module, SentenceModel):
        _write_heads(model.module, model.folder, out, kind)
    for name, data in files.items():
        (home / name).unlink(missing_ok=True)
        if data is not None:
            (home / name).write_bytes(data)
    _require_same(model, out, kind, own_code)
    return tuple(notes)


def changed_config(inner: Any, root: Path) -> dict[str, Any]:
    """``config.json`` of the source with what the model's configuration now says otherwise."""
    config = read_json(root / "config.json")
    before = type(inner.config).from_pretrained(str(root), local_files_only=True).to_dict()
    _merge(config, before, json.loads(json.dumps(inner.config.to_dict(), default=str)))
    return config


def _merge(config: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before = json.loads(json.dumps(before, default=str))
    for key, value in now.items():
        if key in _UNSAID or before.get(key) == value:
            continue
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _merge(config[key], before.get(key) or {}, value)
        else:
            config[key] = value


# ---------------------------------------------------------------------------------------------
# files


def _copy(source: Path, out: Path, replaced: set[Path], own_code: bool) -> list[str]:
    """All files but weights and hidden folders; what was left out comes back as notes."""
    weights: list[str] = []
    code: list[str] = []
    for name in _files(source):
        target = out / name
        if PurePosixPath(name).suffix in _WEIGHTS or name.endswith(_INDEX):
            weights.append(name)
        elif name.endswith(".py") and not own_code:
            code.append(name)
        elif target not in replaced:
            target.parent.mkdir(parents=True, exist_ok=True)
            with reading(source / name):
                shutil.copyfile(source / name, target)
    notes = []
    stale = [n for n in weights if not _rewritten(n)]
    if stale:
        notes.append(f"left out, as they hold the weights of before: {_some(stale)}")
    if code:
        notes.append(f"left out, as transformers has the model's class itself: {_some(code)}")
    return notes


def _rewritten(name: str) -> bool:
    """Whether the file's weights are written anew, under this name or another."""
    file = PurePosixPath(name)
    if file.suffix not in (".safetensors", ".bin", ".json"):
        return False
    return file.name.startswith(("model.", "model-", "pytorch_model"))


def _files(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if Path(parent, name).is_file():
                yield Path(parent, name).relative_to(folder).as_posix()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---------------------------------------------------------------------------------------------
# weights


def _stored_dtype(inner: Any, root: Path) -> torch.dtype:
    """The dtype of most of the source's values; float32 where it holds none that we know."""
    from edgeopt.files.hf_folder import describe

    counts: Counter[str] = Counter()
    for weight in describe(root).weights:
        counts[weight.dtype] += weight.nbytes
    found = next((name for name, _ in counts.most_common(1)), "float32")
    kind = getattr(torch, found, torch.float32)
    return kind if kind in (torch.float16, torch.bfloat16) else torch.float32


def _write_weights(inner: Any, home: Path, kind: torch.dtype) -> None:
    try:
        from safetensors import SafetensorError
    except ImportError:
        raise MissingExtraError("safetensors", "torch", "a Hugging Face folder") from None
    said = {key: getattr(inner.config, key, None) for key in ("dtype", "architectures")}
    try:
        inner.save_pretrained(str(home), state_dict=_cast(inner.state_dict(), kind))
    except SafetensorError as error:
        raise OutputError(f"{home}: the weights cannot be written ({error})") from error
    finally:
        for key, value in said.items():
            setattr(inner.config, key, value)


def _cast(state: Mapping[str, Tensor], kind: torch.dtype) -> dict[str, Tensor]:
    """Floats in ``kind``; what was one tensor under two names still is."""
    made: dict[int, Tensor] = {}
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.dtype != kind:
            tensor = made.setdefault(tensor.data_ptr(), tensor.to(kind))
        result[name] = tensor
    return result


def _write_heads(module: SentenceModel, source: Path, out: Path, kind: torch.dtype) -> None:
    """Dense layers behind the pooling, as sentence-transformers reads them."""
    from safetensors.torch import save_file

    from edgeopt.files.hf_folder import sentence_transformers

    dense = [part for part in module.head if isinstance(part, nn.Sequential)]
    for name, part in zip(sentence_transformers(source).heads, dense, strict=True):
        state = {f"linear.{key}": t.contiguous() for key, t in part[0].state_dict().items()}
        (out / name).mkdir(parents=True, exist_ok=True)
        save_file(_cast(state, kind), str(out / name / "model.safetensors"), {"format": "pt"})


# ---------------------------------------------------------------------------------------------
# loaded again


def _require_same(model: TorchModel, out: Path, kind: torch.dtype, own_code: bool) -> None:
    """The folder's weights are the model's to the bit, and so is what is computed with them."""
    try:
        loaded = pretrained(out, own_code).float()
        whole: nn.Module = with_head(out, loaded) or loaded
    except EdgeoptError as error:
        raise SourceError(f"transformers cannot load what was written ({error}); {_ELSE}") from None
    feed = model.tensors()
    whole.to(next((tensor.device for tensor in feed.values()), "cpu"))
    state = whole.state_dict()
    for name, tensor in model.module.state_dict().items():
        expected = tensor.to(kind).to(tensor.dtype) if tensor.is_floating_point() else tensor
        if name not in state or not torch.equal(expected, state[name]):
            raise SourceError(f"{name} is another when the folder is loaded again; {_ELSE}")
    with model.mode(False), torch.inference_mode():
        again = replace(model, module=whole.eval()).outputs(feed)
        args, kwargs = model.arguments(feed)
        # Every name is given: what is tied is given as often as it has names.
        called = torch.func.functional_call(model.module, state, args, kwargs, tie_weights=False)
        for name, tensor in flatten(called):
            if not torch.allclose(tensor, again[name], rtol=1e-4, atol=1e-5, equal_nan=True):
                raise SourceError(
                    f"loaded again from a folder the model answers otherwise ({name}): its"
                    f" configuration cannot say what was changed; {_ELSE}"
                )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
