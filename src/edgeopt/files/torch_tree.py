"""Where the tensors are in the object that a torch file holds, and which of them are the model.

The rule. Every tensor has a path: dict keys, list positions, module names. Going by the keys of
the dicts around it, a tensor belongs to an optimizer (``OPTIMIZER_KEYS``), to an averaged copy
(``EMA_KEYS``, or a name that begins with ``EMA_PREFIXES``) or perhaps to the model. The model is
what lies under the best of ``MODEL_KEYS`` (the first in that table, following such keys inwards:
``model`` -> ``state_dict``); without such a key it is everything that is left, named by its whole
path. Where nothing but an averaged copy is left, that copy is the model. What is neither is
``other``. Numbers and short strings at the top (``epoch``, ``lr``) become metadata.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError
from edgeopt.files.pickle_nodes import Opaque
from edgeopt.files.torch_objects import Composite, StorageRef, TensorRef

__all__ = ["Leaf", "Tree", "is_array", "read_tree"]

#: Keys under which checkpoints keep the model, the most telling first.
MODEL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "state_dict_model",
    "model",
    "module",
    "net",
    "network",
    "net_state_dict",
    "model_weights",
    "weights",
    "params",
    "parameters",
)
#: ``optimizer_states``, ``g_optimizer``, ``optim``, ``opt_state``, ``lr_schedulers``, ``amp``.
OPTIMIZER_KEYS = re.compile(
    r".*optimizer.*|optims?(_.*)?|opt_.*|.*scheduler.*|.*scaler.*|amp(_state)?"
)
#: ``ema``, ``model_ema``, ``ema_state_dict``, ``params_ema``, ``shadow_params``, ``swa_model``.
EMA_KEYS = re.compile(r"(.*_)?(ema|swa)(_.*)?|shadow(_params)?|averaged_model")
#: What torch's optimizers keep for a parameter, at ``state`` / number / one of these.
OPTIMIZER_SLOTS = re.compile(
    r"step|(max_)?exp_(avg|inf)(_sq)?|momentum_buffer|square_avg|grad_avg|acc_delta|sum|prev|ax|mu"
)
EMA_PREFIXES = ("model_ema.", "ema_model.", "module_ema.")

#: What wrappers put in front of every name: DataParallel, torch.compile.
WRAPPERS = ("module.", "_orig_mod.")

MAX_DEPTH, MAX_NAME = 100, 1000

_CONTAINERS = (dict, list, tuple, Opaque, Composite)
_LEAVES = (TensorRef, StorageRef, *_CONTAINERS)
#: TorchScript's names for classes that are not written in Python.
_NATIVE = "__torch__.torch.classes."


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor at ``path``. ``outer`` counts the path's leading keys that lie outside modules."""

    path: tuple[str, ...]
    node: TensorRef | Opaque
    outer: int
    in_module: bool = False
    buffer: bool = False
    persistent: bool = True


@dataclass
class Tree:
    """The tensors of a file by (name, role-to-be), and what was learned on the way.

    ``kind`` is ``torch-state-dict``, ``torch-checkpoint`` or ``torch-module``.
    """

    kind: str = "torch-state-dict"
    model: list[tuple[str, Leaf]] = field(default_factory=list)
    extras: list[tuple[str, str, Leaf]] = field(default_factory=list)
    module_class: str | None = None
    checkpoint_key: str = ""
    prefix: str = ""
    composites: dict[str, dict[str, Any]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def is_array(node: Any) -> bool:
    """A pickled numpy array: its class, with the state that holds shape, dtype and bytes."""
    return (
        isinstance(node, Opaque)
        and node.name.endswith("multiarray._reconstruct")
        and isinstance(node.state, tuple)
        and len(node.state) == 5
    )


def _module_state(node: Any) -> dict[Any, Any] | None:
    """The ``__dict__`` of a pickled nn.Module (torch.fx hands it over as an argument)."""
    if isinstance(node, Opaque):
        for state in (node.state, node.args[0] if node.args else None):
            if isinstance(state, dict) and "_parameters" in state and "_modules" in state:
                return state
    return None


class _TreeWalk:
    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.visits = 300_000 + nbytes // 64
        self.leaves = 40_000 + nbytes // 512
        self.letters = 8_000_000 + nbytes // 64
        self.composites: dict[str, dict[str, Any]] = {}
        self.modules: list[tuple[tuple[str, ...], str]] = []

    def fail(self, problem: str) -> FormatError:
        return FormatError(self.path, problem, field="pickled object")

    def leaves_of(self, top: Any, script: bool) -> list[Leaf]:
        """All tensors under ``top``, in the order they stand in. Nothing recurses."""
        found: list[Leaf] = []
        seen: set[int] = set()
        above: list[int] = []  # ids of the containers on the way here, and what they have left
        waiting: list[Iterator[Leaf]] = [iter((Leaf((), top, 0),))]
        while waiting:
            here = next(waiting[-1], None)
            if here is None:
                waiting.pop()
                del above[-1:]
                continue
            self.visits -= 1
            if self.visits < 0:
                raise self.fail("too many objects for a file of this size")
            node: Any = here.node
            if isinstance(node, StorageRef):  # saved by itself: a vector of all its elements
                node = TensorRef(node, node.dtype, 0, (node.numel,), (1,))
                here = dataclasses.replace(here, node=node)
            if isinstance(node, TensorRef) or is_array(node):
                self.letters -= sum(map(len, here.path))
                if len(found) >= self.leaves or self.letters < 0:
                    raise self.fail(f"more than {len(found)} tensors in a file of this size")
                found.append(here)
                continue
            # A submodule may stand in several places, as in state_dict(); anything else is
            # told of once. Neither may contain itself.
            shared = _module_state(node) is not None or (script and isinstance(node, Opaque))
            if not isinstance(node, _CONTAINERS) or id(node) in (above if shared else seen):
                continue
            if len(above) >= MAX_DEPTH:
                raise self.fail(f"nested more than {MAX_DEPTH} deep")
            seen.add(id(node))
            above.append(id(node))
            waiting.append(self._children(here, script))
        return found

    def _children(self, here: Leaf, script: bool) -> Iterator[Leaf]:
        node: Any = here.node
        state = _module_state(node)
        if state is not None:
            yield from self._module(here, node, state)
            return
        inside = here.in_module
        pairs: Iterable[tuple[Any, Any]] = ()
        if isinstance(node, dict):
            pairs = node.items()
        elif isinstance(node, (list, tuple)):
            pairs = enumerate(node)
        elif isinstance(node, Composite):
            name = ".".join(here.path)[:MAX_NAME]
            self.composites[name] = {"layout": node.layout, "shape": node.shape}
            pairs = node.parts.items()
        elif isinstance(node, Opaque):
            pairs = self._parts(node)
            inside = inside or (script and node.name.startswith("__torch__."))
            if inside and not here.in_module:
                self.modules.append((here.path, node.name))
        # A scripted module's lists and dicts (an LSTM's _flat_weights) repeat its parameters;
        # those of a native class (packed quantized weights) are all it has.
        repeats = inside and isinstance(node, Opaque) and not node.name.startswith(_NATIVE)
        for key, value in pairs:
            if isinstance(value, _LEAVES):
                listed = repeats and isinstance(value, (list, dict))
                yield self._child(here, key, value, in_module=inside, persistent=not listed)

    @staticmethod
    def _parts(node: Opaque) -> Iterator[tuple[Any, Any]]:
        if isinstance(node.state, dict):
            yield from node.state.items()
        elif node.state is not None:
            yield "state", node.state
        yield from enumerate(node.args)
        yield from (node.items or {}).items()
        yield from enumerate(node.elements or ())

    def _module(self, here: Leaf, node: Opaque, state: dict[Any, Any]) -> Iterator[Leaf]:
        if not here.in_module:
            self.modules.append((here.path, node.name))
        temporary = state.get("_non_persistent_buffers_set")
        names = {n for n in temporary if isinstance(n, str)} if isinstance(temporary, list) else ()
        for part in ("_parameters", "_buffers", "_modules"):
            table = state.get(part)
            for key, value in table.items() if isinstance(table, dict) else ():
                if isinstance(value, _LEAVES):
                    kept = key not in names
                    buffer = part == "_buffers"
                    yield self._child(
                        here, key, value, in_module=True, buffer=buffer, persistent=kept
                    )

    def _child(
        self,
        here: Leaf,
        key: Any,
        value: Any,
        *,
        in_module: bool = False,
        buffer: bool = False,
        persistent: bool = True,
    ) -> Leaf:
        name = key if isinstance(key, str) else str(key) if isinstance(key, int) else "(key)"
        if len(name) > MAX_NAME:
            raise self.fail(f"a name of {len(name)} letters, the limit is {MAX_NAME}")
        inside = here.in_module or in_module
        outer = here.outer if inside else here.outer + 1
        persistent = persistent and here.persistent
        return Leaf((*here.path, name), value, outer, inside, buffer, persistent)


def read_tree(path: Path, nbytes: int, top: Any, *, script: bool = False) -> Tree:
    """Find the tensors in ``top`` (see the module's rule). ``script`` for TorchScript objects."""
    walk = _TreeWalk(path, nbytes)
    leaves = walk.leaves_of(top, script)
    tree = Tree(composites=walk.composites)
    if isinstance(top, dict):
        tree.metadata = {
            key: value
            for key, value in list(top.items())[:1000]
            if isinstance(key, str)
            and len(key) <= 100
            and isinstance(value, (bool, int, float, str))
            and (not isinstance(value, str) or len(value) <= 200)
        }
    roles = [_role(leaf) for leaf in leaves]
    if "" not in roles and "ema" in roles:
        roles = ["" if role == "ema" else role for role in roles]
    root = _root([leaf for leaf, role in zip(leaves, roles, strict=True) if not role])
    for leaf, role in zip(leaves, roles, strict=True):
        if role or leaf.path[: len(root)] != root or not leaf.persistent:
            tree.extras.append((_name(leaf.path), role or "other", leaf))
        else:
            tree.model.append((_name(leaf.path[len(root) :]), leaf))
    _split_ema(tree)
    tree.checkpoint_key = ".".join(root)
    inside = next((leaf for _, leaf in tree.model if leaf.in_module), None)
    if inside is not None:
        tree.kind = "torch-module"
        tree.module_class = next(
            (name for at, name in walk.modules if inside.path[: len(at)] == at), None
        )
    else:
        if root or tree.extras or any(len(leaf.path) > 1 for _, leaf in tree.model):
            tree.kind = "torch-checkpoint"
        _strip_wrappers(tree)
    _make_unique(tree)
    return tree


def _name(path: tuple[str, ...]) -> str:
    return ".".join(path)[:MAX_NAME] or "tensor"


def _role(leaf: Leaf) -> str:
    for key in leaf.path[: leaf.outer][: len(leaf.path) - 1]:
        low = key.lower()
        if OPTIMIZER_KEYS.fullmatch(low):
            return "optimizer"
        if EMA_KEYS.fullmatch(low):
            return "ema"
    above = leaf.path[-3:]
    if len(above) == 3 and above[0] == "state" and OPTIMIZER_SLOTS.fullmatch(above[2]):
        return "optimizer"
    return ""


def _root(leaves: list[Leaf]) -> tuple[str, ...]:
    """The path of the container that holds the model; () when it is everything."""
    best: tuple[int, tuple[str, ...]] | None = None
    for leaf in leaves:
        keys = [key.lower() for key in leaf.path[:-1][: leaf.outer]]
        at = next((i for i, key in enumerate(keys) if key in MODEL_KEYS), None)
        if at is None:
            continue
        rank, stop = MODEL_KEYS.index(keys[at]), at + 1
        while stop < len(keys) and keys[stop] in MODEL_KEYS:
            stop += 1
        if best is None or rank < best[0]:
            best = (rank, leaf.path[:stop])
    return best[1] if best else ()


def _split_ema(tree: Tree) -> None:
    copies = [n.startswith(EMA_PREFIXES) for n, _ in tree.model]
    if any(copies) and not all(copies):
        pairs = list(zip(tree.model, copies, strict=True))
        tree.extras += [(name, "ema", leaf) for (name, leaf), copy in pairs if copy]
        tree.model = [item for item, copy in pairs if not copy]


def _strip_wrappers(tree: Tree) -> None:
    while tree.model:
        prefix = next(
            (w for w in WRAPPERS if all(n.startswith(w) and n != w for n, _ in tree.model)), None
        )
        if prefix is None:
            return
        tree.prefix += prefix
        tree.model = [(name[len(prefix) :], leaf) for name, leaf in tree.model]


def _make_unique(tree: Tree) -> None:
    """Two paths may read alike (``a.b`` and ``a``/``b``): number the later ones."""
    seen: set[str] = set()
    numbered: dict[str, int] = {}  # the last number given: ten thousand alike are not counted anew

    def unique(name: str) -> str:
        tried, count = name, numbered.get(name, 1)
        while tried in seen:
            count += 1
            tried = f"{name}#{count}"
        numbered[name] = count
        seen.add(tried)
        return tried

    tree.model = [(unique(name), leaf) for name, leaf in tree.model]
    seen.clear()
    numbered.clear()
    tree.extras = [(unique(name), role, leaf) for name, role, leaf in tree.extras]
