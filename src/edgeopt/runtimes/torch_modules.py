"""From a file to a torch module in memory: user's code, pickles, TorchScript.

What both capturing a model and running it need. The user's own code and native loaders promise no
class of error: whatever they raise becomes one of ours, in a line.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeopt.errors import CaptureError, SourceError, UnsafeError, UsageError
from edgeopt.runtimes.reasons import attempt, one_line

__all__ = [
    "argument_names",
    "build",
    "fill_in",
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
    :func:`edgeopt.runtimes.torch_programs.exported`."""
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
    package, _, attribute = name.partition(":")
    if not package or not attribute:
        raise UsageError(f"{option} {name} is not of the form package.module:callable")
    _here()
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
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise SourceError(f"{option} {name} is a {type(found).__name__}, not something to call")
    model, error = attempt(found)
    if error is not None:
        raise SourceError(f"{option} {name}: calling it raised {one_line(error)}")
    if not isinstance(model, nn.Module):
        raise SourceError(f"{option} {name} returned a {type(model).__name__}, not a torch Module")
    return model


def _here() -> None:
    """The user's own code counts from the current folder, once all of ours has been imported."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def fill_in(
    module: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], torch.Tensor],
) -> nn.Module:
    """Load the weights that ``shapes`` lists, each from ``tensor(name)``, strictly.

    A ``module.`` that DataParallel put before every name is taken off; a parameter that is tied to
    one that was loaded counts as loaded. Raises SourceError naming the first keys that do not fit.
    """
    own = module.state_dict(keep_vars=True)
    given = {name: name for name in shapes}
    if given and not set(given) & set(own):
        stripped = {name.removeprefix("module."): name for name in given}
        if set(stripped) & set(own):
            given = stripped
    unexpected = [n for n in given if n not in own]
    loaded = {id(own[n]) for n in given if n in own}
    missing = [n for n, t in own.items() if n not in given and id(t) not in loaded]
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    wrong = [
        f"{n} is {list(shapes[stored])} in the file and {list(own[n].shape)} in the code"
        for n, stored in given.items()
        if n in own and tuple(shapes[stored]) != tuple(own[n].shape)
    ]
    problems = [
        *(f"{_first(missing)} missing from the file" for _ in [0] if missing),
        *(f"{_first(unexpected)} not in the code" for _ in [0] if unexpected),
        *wrong[:1],
    ]
    narrow = sum(math.prod(s) for s in shapes.values()) < sum(own[n].numel() for n in own)
    if wrong and narrow and len(problems) == 1:
        problems.append(
            "if channels were pruned: use the program (.pt) that prune wrote; to prune more, start"
            " from the unpruned file with a higher --ratio"
        )
    if problems:
        raise SourceError(f"the weights do not fit {type(module).__name__}: {'; '.join(problems)}")
    with torch.no_grad():
        for name, stored in given.items():
            own[name].copy_(tensor(stored))
    return module


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
    _here()
    try:
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
