"""The blocks of a network: parts that repeat and hand on what they were given, changed a little.

Two forms are found. ``layers`` are members of a list or a Sequential that holds several of one
class: a transformer's layers, a residual stage of a ResNet. Where no list has any, ``residual`` are
modules of a class that occurs several times, as an attribute or as the only one in a Sequential.
Which of them keep their input's shape is seen in a run, not read from the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.modules.model import TorchModel

__all__ = ["Block", "find_blocks", "first_tensor", "read_blocks"]

_PLAIN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """``name`` from the model's root on, ``container`` the module that holds it.

    ``kind`` is ``layers`` or ``residual``. ``reason`` says why it cannot be taken out; it is empty
    where it can.
    """

    name: str
    container: str
    kind: str
    reason: str = ""


@dataclass
class _SeenCall:
    """How a module was called in a run."""

    calls: int = 0
    before: tuple[int, ...] | None = None
    after: tuple[int, ...] | None = None
    plain: bool = True  # one tensor in, one tensor out

    @property
    def keeps(self) -> bool:
        return self.before is not None and self.before == self.after


def find_blocks(model: TorchModel) -> tuple[Block, ...]:
    """The blocks that can be taken out of the network, in the order of their names.

    The model is run once, on its example, in evaluation mode.
    """
    return tuple(block for block in read_blocks(model) if not block.reason)


def read_blocks(model: TorchModel) -> tuple[Block, ...]:
    """Like :func:`find_blocks`, with those of the same class that have to stay, and why."""
    modules = dict(model.module.named_modules())
    seen = _watch(model, modules)
    found = [block for group in _layers("", model.module, seen) for block in group]
    if all(block.reason for block in found):
        found += _residual(modules, [block.name for block in found], seen)
    order = {name: at for at, name in enumerate(modules)}
    return tuple(sorted(found, key=lambda block: order[block.name]))


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of several dimensions in what a module takes or returns."""
    if isinstance(value, Tensor):
        return value if value.ndim >= 2 and value.is_floating_point() else None
    values: Sequence[Any] = ()
    if isinstance(value, Mapping):
        values = tuple(value.values())
    elif isinstance(value, (tuple, list)):
        values = value
    return next((t for t in map(first_tensor, values) if t is not None), None)


def _watch(model: TorchModel, modules: Mapping[str, nn.Module]) -> dict[str, _SeenCall]:
    """How each composite module is called when the example is run."""
    seen = {name: _SeenCall() for name, module in modules.items() if name and _composite(module)}
    names = {id(modules[name]): name for name in seen}

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found = seen[names[id(module)]]
        found.calls += 1
        given = first_tensor((*args, kwargs))
        made = first_tensor(output)
        found.before = None if given is None else tuple(given.shape)
        found.after = None if made is None else tuple(made.shape)
        found.plain = len(args) + len(kwargs) == 1 and isinstance(output, Tensor)

    with ExitStack() as stack:
        for name in seen:
            handle = modules[name].register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(model.mode(False))
        stack.enter_context(torch.no_grad())
        model.outputs(model.tensors())
    return seen


def _composite(module: nn.Module) -> bool:
    """A module with parts and parameters and a forward of its own."""
    if type(module) in _PLAIN or next(module.children(), None) is None:
        return False
    return next(module.parameters(), None) is not None


def _members(name: str, module: nn.Module) -> Iterator[list[str]]:
    """Names of the children of one class, where there are several, for each class."""
    classes: dict[type[nn.Module], list[str]] = {}
    for key, child in module.named_children():
        if _composite(child):
            classes.setdefault(type(child), []).append(_joined(name, key))
    yield from (names for names in classes.values() if len(names) > 1)


def _layers(name: str, module: nn.Module, seen: Mapping[str, _SeenCall]) -> Iterator[list[Block]]:
    """Blocks in lists below ``module``, the outermost that keep their shape."""
    taken: set[str] = set()
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        for names in _members(name, module):
            inside = [b for n in names for g in _layers(n, _child(module, n), seen) for b in g]
            if _are_blocks([seen[n].keeps for n in names], inside):
                taken.update(names)
                yield [Block(n, name, "layers", _complaint(seen[n])) for n in names]
    for key, child in module.named_children():
        if _joined(name, key) not in taken:
            yield from _layers(_joined(name, key), child, seen)


def _are_blocks(keeps: Sequence[bool], inside: Sequence[Block]) -> bool:
    """Whether members of a list are blocks, rather than stages that hold them.

    ``keeps``: which of them return their input's shape; ``inside``: blocks in lists within them.
    Of stages the first or the last may keep it. Of blocks the first may not, and lists within it
    (its convolutions) do not either.
    """
    if all(keeps) or not inside:
        return any(keeps)
    return all(keeps[1:]) and any(block.reason for block in inside)


def _residual(
    modules: Mapping[str, nn.Module], taken: Sequence[str], seen: Mapping[str, _SeenCall]
) -> Iterator[Block]:
    """Modules of a class that occurs several times outside of the blocks found in lists."""
    apart = [n for n in seen if not any(_within(n, t) or _within(t, n) for t in taken)]
    while apart:
        outer = [n for n in apart if not any(_within(n, other) for other in apart if other != n)]
        classes: dict[type[nn.Module], list[str]] = {}
        for name in outer:
            classes.setdefault(type(modules[name]), []).append(name)
        for names in classes.values():
            if len(names) > 1 and any(seen[n].keeps for n in names):
                for name in names:
                    own = "" if seen[name].plain else "takes or returns more than one tensor"
                    reason = _complaint(seen[name]) or own
                    yield Block(name, name.rpartition(".")[0], "residual", reason)
                apart = [n for n in apart if not any(_within(n, name) for name in names)]
        apart = [n for n in apart if n not in outer]


def _complaint(seen: _SeenCall) -> str:
    if seen.calls != 1:
        return f"is called {seen.calls} times in a run"
    if not seen.keeps:
        return f"changes the shape of its input ({_shape(seen.before)} to {_shape(seen.after)})"
    return ""


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no tensor" if shape is None else str(list(shape))


def _child(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[2])


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")
