"""No modules import one another in a circle, however the import is written."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

import edgeopt

SOURCE = Path(edgeopt.__file__).parent


def modules(source: Path) -> dict[str, ast.Module]:
    """Every module below ``source`` by its dotted name, parsed."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


def imports(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """What each module imports of the others: at its top, inside functions and for checkers alike.

    ``from a.b import c`` is ``a.b.c`` where that is a module, else ``a.b``; the packages around a
    module are not counted, whose ``__init__`` runs before it in any case.
    """
    arrows: dict[str, set[str]] = {}
    for name, tree in trees.items():
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {one if one in trees else node.module for one in inner}
        arrows[name] = (found & trees.keys()) - {name}
    return arrows


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that reach one another, as sorted lists: what is left once all leaves are gone."""
    reach = {name: set(to) for name, to in arrows.items()}
    while True:
        wider = {n: to.union(*(reach[other] for other in to)) for n, to in reach.items()}
        if wider == reach:
            break
        reach = wider
    alike = {
        tuple(sorted(other for other in to if name in reach[other]))
        for name, to in reach.items()
        if name in to
    }
    return sorted(map(list, alike))


def test_no_module_imports_in_a_circle() -> None:
    assert circles(imports(modules(SOURCE))) == []


@pytest.mark.parametrize(
    "line",
    [
        "from edgeopt.one import A",
        "from edgeopt import one",
        "import edgeopt.one",
        "def late():\n    from edgeopt.one import A",
        "if TYPE_CHECKING:\n    from edgeopt.one import A",
    ],
)
def test_a_circle_is_seen_however_it_is_written(line: str) -> None:
    trees = {"edgeopt": "", "edgeopt.one": "import edgeopt.two", "edgeopt.two": line}
    found = circles(imports({name: ast.parse(text) for name, text in trees.items()}))
    assert found == [["edgeopt.one", "edgeopt.two"]]
