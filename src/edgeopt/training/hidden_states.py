"""Outputs of a network's inner modules, taken while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from edgeopt.core.names import near
from edgeopt.errors import SourceError, UsageError
from edgeopt.modules.outputs import flatten

__all__ = ["captured"]


@contextmanager
def captured(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While this lasts, the outputs of the named modules in the latest forward of ``module``.

    Of a tuple or mapping, its first tensor; of a module that runs several times in one forward,
    its last output. Gradients flow through. What an earlier forward gave is gone when the next
    begins, so that no step's graph outlives it.

    Raises UsageError for a name that is not there, SourceError (in the forward) for a module that
    returns no tensor.
    """
    known = dict(module.named_modules())
    for name in names:
        if name not in known:
            raise UsageError(f"there is no layer {name}; {near(name, filter(None, known))}")
    outputs: dict[str, Tensor] = {}

    def forget(*_: Any) -> None:
        outputs.clear()

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, _: Any, value: Any) -> None:
            tensors = flatten(value)
            if not tensors:
                raise SourceError(f"layer {name} ({type(part).__name__}) returns no tensor")
            outputs[name] = tensors[0][1]

        return hook

    handles = [module.register_forward_pre_hook(forget)] if names else []
    handles += [known[name].register_forward_hook(keep(name)) for name in dict.fromkeys(names)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
