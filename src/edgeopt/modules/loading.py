"""From a file to a torch module in memory: user's code, pickles, TorchScript.

What both capturing a model and running it need. The user's own code and native loaders promise no
class of error: whatever they raise becomes one of ours, in a line.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeopt.core import Weight
from edgeopt.core.given import is_given, lookup
from edgeopt.core.importing import current_folder
from edgeopt.errors import CaptureError, SourceError, UnsafeError, UsageError
from edgeopt.modules.reasons import attempt, one_line

__all__ = [
    "Filled",
    "argument_names",
    "build",
    "fill",
    "fill_in",
    "matched",
    "needs_trust",
    "scripted",
    "tensor_of",
    "unpickled",
]

_WHY: Mapping[str, str] = {
    "torch-module": "a pickled module runs code when it is loaded",
}


def needs_trust(path: Path, kind: str, trust: bool) -> None:
    """Raise UnsafeError where loading this kind of file always runs its code and nobody has allowed
    it. Exported programs are examined as they are loaded, by
    :func:`edgeopt.modules.exported.exported`."""
    if trust or kind not in _WHY:
        return
    raise UnsafeError(
        f"{path}: {_WHY[kind]}; give --trust-pickle if you trust it, or the code with --model "
        "package.module:callable"
    )


def build(name: str, option: str = "--model") -> nn.Module:
    """Call ``package.module:callable`` (or take the module it names). The current folder counts.

    ``option`` is what errors call it. Raises UsageError for another form, SourceError where the
    code cannot be imported or called, or gives no module.
    """
    if is_given(name):
        return _made(lookup(name), name, option)
    package, _, attribute = name.partition(":")
    if not package or not attribute:
        raise UsageError(f"{option} {name} is not of the form package.module:callable")
    with current_folder(keep=True):
        imported, error = attempt(lambda: importlib.import_module(package))
    if error is not None:
        raise SourceError(f"{option} {name}: cannot import {package}: {one_line(error)}")
    found: Any = imported
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_")]
            near = ", ".join(names[:6]) or "nothing public"
            raise SourceError(f"{option} {name}: {package} has no {part}; it has {near}")
        found = getattr(found, part)
    return _made(found, name, option)


def _made(found: Any, name: str, option: str) -> nn.Module:
    """The module that was named, or what calling it gives."""
    if isinstance(found, nn.Module):
        # One that a caller holds must stay as it is.
        return copy.deepcopy(found) if is_given(name) else found
    if not callable(found):
        raise SourceError(f"{option} {name} is a {type(found).__name__}, not something to call")
    model, error = attempt(found)
    if error is not None:
        raise SourceError(f"{option} {name}: calling it raised {one_line(error)}")
    if not isinstance(model, nn.Module):
        raise SourceError(f"{option} {name} returned a {type(model).__name__}, not a torch Module")
    return model


class Filled(NamedTuple):
    """A module with its weights, and what a reader should know of how they came there."""

    module: nn.Module
    notes: tuple[str, ...] = ()


def fill_in(
    module: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], torch.Tensor],
) -> Filled:
    """Load the weights that ``shapes`` lists, each from ``tensor(name)``.

    All that the code has must be there: a parameter that is tied to one that was loaded counts as
    loaded. What the file has besides is left out, and named in a note. Prefixes that wrappers put
    before every name (DataParallel, torch.compile, a trainer's own module) are taken off the file's
    names or put before them, whichever fills the module. Raises SourceError naming the first keys
    that do not fit.
    """
    own = module.state_dict(keep_vars=True)
    given = matched(own, list(shapes))
    unexpected = [n for n in shapes if n not in given.values()]
    loaded = {id(own[n]) for n in given}
    missing = [n for n, t in own.items() if n not in given and id(t) not in loaded]
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    wrong = [
        f"{n} is {list(shapes[stored])} in the file and {list(own[n].shape)} in the code"
        for n, stored in given.items()
        if tuple(shapes[stored]) != tuple(own[n].shape)
    ]
    problems = [
        *(f"{_first(missing)} missing from the file" for _ in [0] if missing),
        *(f"{_first(unexpected)} not in the code" for _ in [0] if unexpected and missing),
        *wrong[:1],
    ]
    narrow = sum(math.prod(s) for s in shapes.values()) < sum(own[n].numel() for n in own)
    if wrong and narrow and len(problems) == 1:
        problems.append(
            "if channels were pruned: use the program (.pt) that prune wrote; to prune more, start"
            " from the unpruned file with a higher --ratio"
        )
    if problems or (shapes and not given):
        problems = problems or ["no name of the file's is in the code"]
        raise SourceError(f"the weights do not fit {type(module).__name__}: {'; '.join(problems)}")
    with torch.no_grad():
        for name, stored in given.items():
            own[name].copy_(tensor(stored))
    left = f"left out, as the code has no such weights: {_first(unexpected)}"
    return Filled(module, (left,) if unexpected else ())


def fill(module: nn.Module, weights: Iterable[Weight]) -> Filled:
    """Load a file's weights into the module as :func:`fill_in` does. Errors likewise."""
    given = {weight.name: weight for weight in weights}

    def tensor(name: str) -> torch.Tensor:
        return tensor_of(given[name].array(), given[name].dtype)

    return fill_in(module, {name: weight.shape for name, weight in given.items()}, tensor)


#: What torch.compile puts into names, at any depth.
_COMPILED = "_orig_mod."


def matched(own: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """The code's name -> the file's, under the change of prefix that fills most of the code: none,
    if that is as good as any; then the shortest taken off; then the shortest put on."""
    plain = {name.replace(_COMPILED, ""): name for name in names}
    wanted = {name.replace(_COMPILED, ""): name for name in own}
    changes: list[tuple[str, str]] = [("", "")]
    changes += [(prefix, "") for prefix in _prefixes(plain)]
    changes += [("", prefix) for prefix in _prefixes(wanted)]
    best: dict[str, str] = {}
    for off, on in changes:
        found = {
            wanted[on + name.removeprefix(off)]: stored
            for name, stored in plain.items()
            if name.startswith(off) and on + name.removeprefix(off) in wanted
        }
        if len(found) > len(best):
            best = found
    return best


def _prefixes(names: Iterable[str]) -> list[str]:
    """What many names begin with, in whole parts, the shortest first: ``model.``, ``a.b.``."""
    counted: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1][:_DEEPEST]
        counted.update(".".join(parts[: i + 1]) + "." for i in range(len(parts)))
    return sorted(counted, key=lambda prefix: (prefix.count("."), -counted[prefix]))[:_MOST]


#: Parts of a prefix, and prefixes tried.
_DEEPEST, _MOST = 3, 64


def _first(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def tensor_of(array: NDArray[Any], dtype: str) -> torch.Tensor:
    """A copy of ``array`` as a tensor; ``dtype`` is what its elements are, where numpy has no name
    for them."""
    array = np.array(array, order="C")
    if dtype == "bfloat16" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if dtype.startswith("float8") and array.dtype.kind not in "iuf":
        array = array.astype(np.float32)
    return torch.from_numpy(array)


def unpickled(path: Path) -> nn.Module:
    """The module in a pickle. The user has given their word: the file's own code runs here."""
    try:
        with current_folder(keep=True):
            model = torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ModuleNotFoundError, ImportError) as error:
        raise SourceError(
            f"{path}: the pickled module's class cannot be found: {one_line(error)}; run where its "
            f"code is importable, or give --model package.module:callable"
        ) from None
    if not isinstance(model, nn.Module):
        raise SourceError(f"{path} holds a {type(model).__name__}, not a torch Module")
    return model


def scripted(path: Path) -> Any:
    """A TorchScript module, for evaluation. Raises CaptureError where torch cannot load it."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise CaptureError(f"{path}: torch cannot load it: {one_line(error)}") from None


def argument_names(module: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(required, optional) names of the forward's arguments, in order.

    TorchScript modules tell theirs by schema.
    """
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None:
        arguments = schema.arguments[1:]
        required = tuple(a.name for a in arguments if not a.has_default_value())
        return required, tuple(a.name for a in arguments if a.has_default_value())
    parameters = inspect.signature(module.forward).parameters.values()
    plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = tuple(p.name for p in plain if p.default is p.empty)
    return required, tuple(p.name for p in plain if p.default is not p.empty)
