"""The runner that is sent to another machine: those of our modules that it imports there.

The modules are found by reading their source, imports inside functions included and those for
type checkers left out, so nothing is imported to find out. The same source gives the same bytes.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeopt import errors

__all__ = ["Bundle", "make_bundle"]

_PACKAGE = "edgeopt"

#: The earliest time that a zip archive can hold.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundle:
    """A zip archive of modules: its bytes, the modules' names, and the packages that they import
    from elsewhere (when they are loaded, or later)."""

    data: bytes
    modules: tuple[str, ...]
    foreign: frozenset[str]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@functools.cache
def make_bundle(entries: tuple[str, ...], root: Path | None = None) -> Bundle:
    """The modules ``entries`` of the package under ``root``, and all of it that they import."""
    root = root or Path(errors.__file__).resolve().parent.parent
    sources: dict[str, Path] = {}
    foreign: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in sources:
            continue
        path = _find(name, root)
        if path is None:
            raise ModuleNotFoundError(f"{name}: no such module under {root}")
        sources[name] = path
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        for imported in _imports(ast.parse(path.read_bytes(), str(path)), name, path):
            if imported.partition(".")[0] != _PACKAGE:
                foreign.add(imported.partition(".")[0])
            elif _find(imported, root) is not None:
                waiting.append(imported)
    return Bundle(_archive(sources, root), tuple(sorted(sources)), frozenset(foreign))


def _find(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _imports(tree: ast.Module, name: str, path: Path) -> Iterator[str]:
    """Every name that may be a module: ``from a import b`` gives ``a`` and ``a.b``."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """As ast.walk, without what stands under ``if TYPE_CHECKING``."""
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children: Iterable[ast.AST] = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from _walk(child)


def _archive(sources: dict[str, Path], root: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(sources.values()):
            member = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o600 << 16
            archive.writestr(member, path.read_bytes())
    return stream.getvalue()
