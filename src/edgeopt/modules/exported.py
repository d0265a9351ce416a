"""Exported programs (``.pt2``) in torch: from an examined copy, or at the user's word."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from edgeopt.core import InputSpec
from edgeopt.errors import CaptureError, UnsafeError
from edgeopt.files.torch_repack import plain_program
from edgeopt.modules.reasons import attempt, one_line

__all__ = ["Exported", "ProgramModule", "exported"]


@dataclass(frozen=True)
class Exported:
    """A program and what it takes: ``inputs`` have names for free dimensions, ``symbols`` the same
    dimensions as the program has them (sympy's expressions, or sizes), input by input."""

    program: Any
    inputs: tuple[InputSpec, ...]
    symbols: tuple[tuple[Any, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.inputs)


def exported(path: Path, trust: bool = False) -> Exported:
    """Load the program. One that can only compute needs no trust: what torch is given is a copy of
    the parts that were examined, without any pickle.

    Raises UnsafeError for any other without ``trust``, FormatError where the file is damaged,
    CaptureError where torch cannot load it, or an input is no tensor.
    """
    told: Mapping[str, tuple[int | str, ...]] = {}
    try:
        with plain_program(path) as copy:
            program, error = attempt(lambda: torch.export.load(copy.stream))
            told = copy.dimensions
        if program is not None:
            _require_operators(path, program)
    except UnsafeError:
        if not trust:
            raise
        program, error = attempt(lambda: torch.export.load(str(path)))
    if program is None:
        why = one_line(error) if error is not None else "it is empty"
        raise CaptureError(f"{path}: torch cannot load it: {why}")
    return _described(path, program, told)


def _require_operators(path: Path, program: Any) -> None:
    """Every call is of an operator: the examination let names pass, torch has looked them up."""
    kinds = (torch._ops.OpOverload, torch._ops.HigherOrderOperator)
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, fx.GraphModule) else ():
            called = node.op in ("call_method", "call_module", "call_function")
            if called and not isinstance(node.target, kinds) and node.target not in _ON_SIZES:
                what = str(node.target).splitlines()[0][:80]
                raise UnsafeError(f"{path}: the program calls {what}, which is no operator")


#: Functions of sizes.
_ON_SIZES = frozenset(
    {
        *(operator.eq, operator.ne, operator.le, operator.ge, operator.lt, operator.gt),
        *(operator.neg, operator.pos, operator.mul, operator.add, operator.sub),
        *(operator.floordiv, operator.mod, operator.pow, operator.truediv, operator.and_),
        *(operator.or_, operator.lshift, operator.rshift, operator.getitem),
        *(torch.sym_not, torch.sym_int, torch.sym_float, torch.sym_ite, torch.sym_max),
        *(torch.sym_min, torch.sym_sum, torch._sym_sqrt, math.trunc, math.ceil, math.floor),
    }
)


def _described(path: Path, program: Any, told: Mapping[str, tuple[int | str, ...]]) -> Exported:
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs: list[InputSpec] = []
    symbols: list[tuple[Any, ...]] = []
    for name in map(str, program.graph_signature.user_inputs):
        value = nodes[name].meta["val"] if name in nodes else None
        if not isinstance(value, torch.Tensor):
            raise CaptureError(f"{path}: the program's input {name} is no tensor")
        sizes = tuple(s if isinstance(s, int) else s.node.expr for s in value.shape)
        names = told.get(name, ())
        shape = tuple(
            size if isinstance(size, int) else _dim(size, names[i] if i < len(names) else size)
            for i, size in enumerate(sizes)
        )
        inputs.append(InputSpec(name, str(value.dtype).removeprefix("torch."), shape))
        symbols.append(sizes)
    return Exported(program, tuple(inputs), tuple(symbols))


def _dim(symbol: Any, name: Any) -> str:
    return name if isinstance(name, str) else str(symbol)


class ProgramModule(nn.Module):
    """A program's module called with flat positional tensors, in its signature's order."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program.module()
        self.spec = program.call_spec.in_spec

    def trainable(self) -> nn.Module:
        """The program's own module, its parameters under their own names, where its arguments are
        tensors in a row; this module where they nest.

        It can be trained and copied. A program holds a network as it runs: parts that differ in
        training (BatchNorm, dropout) stay as they are in evaluation.
        """
        program: Any = self.program
        # torch refuses train() and eval() here, since no operator minds them.
        for name in ("train", "eval"):
            program.__dict__.pop(name, None)
        positions, names = self.spec.children()
        if names.num_leaves or not all(child.is_leaf() for child in positions.children()):
            return self
        # What is left of the input checks looks at sizes, which would fix them in an export.
        program._forward_pre_hooks.clear()
        program._forward_pre_hooks_with_kwargs.clear()
        made: nn.Module = program
        return made

    def arguments(self, *tensors: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The tensors as the program's own arguments, by position and by name."""
        args, kwargs = torch.utils._pytree.tree_unflatten(list(tensors), self.spec)
        return tuple(args), dict(kwargs)

    def forward(self, *tensors: torch.Tensor) -> Any:
        args, kwargs = self.arguments(*tensors)
        return self.program(*args, **kwargs)
