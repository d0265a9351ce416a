"""A sentence-transformers folder as one module: transformer, pooling, dense layers, normalisation.

The arithmetic is that of sentence-transformers (Reimers and Gurevych 2019, arXiv:1908.10084),
written here on plain tensors so that the artifact carries it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeopt.errors import CaptureError, FormatError

__all__ = ["POOLING", "SentenceModel", "head_of", "transformer_folder"]


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    return (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def _mean_sqrt(tokens: Tensor, mask: Tensor) -> Tensor:
    return (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9).sqrt()


def _max(tokens: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask > 0, tokens, torch.finfo(tokens.dtype).min).amax(1)


def _weighted_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    weights = mask * (mask.cumsum(1).clamp(min=1) * mask)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _at(tokens: Tensor, index: Tensor) -> Tensor:
    index = index.reshape(-1, 1, 1).expand(-1, 1, tokens.shape[2])
    return tokens.gather(1, index).squeeze(1)


def _first(tokens: Tensor, mask: Tensor) -> Tensor:
    return _at(tokens, mask.squeeze(-1).to(torch.int32).argmax(1))


def _last(tokens: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
    return _at(tokens, (positions * mask.squeeze(-1).to(torch.int64)).argmax(1))


#: Pooling modes by name; each takes tokens [batch, sequence, width] and mask [batch, sequence, 1].
POOLING: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}

#: The order in which several modes are concatenated, and the older names of their switches.
_SWITCHES: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "Tanh": nn.Tanh,
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
    "SiLU": nn.SiLU,
}


class _Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, p=2.0, dim=1)


class SentenceModel(nn.Module):
    """Gives ``token_embeddings`` and ``sentence_embedding``.

    ``transformer`` answers with ``last_hidden_state`` first; ``modes`` are names of ``POOLING``,
    concatenated; ``head`` the modules after pooling.
    """

    def __init__(
        self, transformer: nn.Module, modes: Sequence[str], head: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.modes = tuple(modes)
        self.head = nn.Sequential(*head)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        tokens = self.transformer(**inputs)[0]
        mask = inputs["attention_mask"].unsqueeze(-1).to(tokens.dtype)
        pooled = torch.cat([POOLING[mode](tokens, mask) for mode in self.modes], dim=1)
        return {"token_embeddings": tokens, "sentence_embedding": self.head(pooled)}


def transformer_folder(folder: Path) -> Path:
    """Where a sentence-transformers folder keeps its transformer; the folder itself for others."""
    if not (folder / "modules.json").is_file():
        return folder
    return folder / _modules(folder)[0][1]


def head_of(folder: Path) -> tuple[tuple[str, ...], list[nn.Module]] | None:
    """(pooling modes, modules after pooling) of a sentence-transformers folder, None for others."""
    if not (folder / "modules.json").is_file():
        return None
    modes: tuple[str, ...] = ()
    after: list[nn.Module] = []
    for kind, path in _modules(folder)[1:]:
        if kind == "Pooling":
            modes = _modes(_json(folder / path / "config.json"), folder / path)
        elif kind == "Normalize":
            after.append(_Normalize())
        elif kind == "Dense":
            after.append(_dense(folder / path))
        elif kind != "Dropout":
            raise CaptureError(
                f"{folder}: the sentence-transformers module {kind} is not known; "
                f"known are Transformer, Pooling, Dense, Normalize and Dropout"
            )
        if kind == "Dense" and not modes:
            raise CaptureError(f"{folder}: a Dense module before pooling is not supported")
    if not modes:
        raise CaptureError(f"{folder}: modules.json names no Pooling module")
    return modes, after


def _modules(folder: Path) -> list[tuple[str, str]]:
    path = folder / "modules.json"
    entries = _json(path)
    try:
        found = [(str(e["type"]).rsplit(".", 1)[-1], str(e["path"])) for e in entries]
    except (KeyError, TypeError) as error:
        raise FormatError(path, f"not a list of modules with type and path ({error})") from None
    if not found or found[0][0] != "Transformer":
        raise CaptureError(f"{path}: the first module is not a Transformer")
    for _, inside in found:
        if not (folder / inside).resolve().is_relative_to(folder.resolve()):
            raise FormatError(path, f"the module path {inside!r} leaves the folder")
    return found


def _modes(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for switch, mode in _SWITCHES.items() if config.get(switch)] or ["mean"]
    modes = (given,) if isinstance(given, str) else tuple(given)
    for mode in modes:
        if mode not in POOLING:
            raise CaptureError(f"{folder}: pooling mode {mode!r} is none of {', '.join(POOLING)}")
    return modes


def _dense(folder: Path) -> nn.Module:
    config = _json(folder / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    short = name.rsplit(".", 1)[-1]
    if short not in _ACTIVATIONS:
        raise CaptureError(f"{folder}: activation {name} is none of {', '.join(_ACTIVATIONS)}")
    linear = nn.Linear(
        int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True))
    )
    state = _state(folder)
    state = {k.removeprefix("linear."): v.float() for k, v in state.items()}
    linear.load_state_dict(state, strict=True)
    return nn.Sequential(linear, _ACTIVATIONS[short]())


def _state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    safe = folder / "model.safetensors"
    if safe.is_file():
        loaded: dict[str, Tensor] = load_file(safe)
        return loaded
    state: dict[str, Tensor] = torch.load(
        folder / "pytorch_model.bin", map_location="cpu", weights_only=True
    )
    return state


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise FormatError(path, f"is not JSON: {error}") from None
