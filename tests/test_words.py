"""One meaning a word: no two classes of the package have the same name."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import edgeopt

SOURCE = Path(edgeopt.__file__).parent


def names(tree: ast.Module) -> Iterator[str]:
    """Classes and aliases of types at the top of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and "TypeAlias" in ast.unparse(node.annotation)
        ):
            yield node.target.id


def shared(sources: dict[str, str]) -> dict[str, list[str]]:
    """Names that several modules give a meaning, and those modules; an underscore gives none."""
    meanings: defaultdict[str, list[str]] = defaultdict(list)
    for place, source in sources.items():
        for name in names(ast.parse(source)):
            meanings[name.lstrip("_")].append(place)
    return {name: places for name, places in meanings.items() if len(places) > 1}


def test_a_class_name_has_one_meaning() -> None:
    sources = {
        path.relative_to(SOURCE).as_posix(): path.read_text() for path in SOURCE.rglob("*.py")
    }
    assert shared(sources) == {}


def test_two_meanings_of_a_word_are_found() -> None:
    alias = "from typing import TypeAlias\nWord: TypeAlias = int\n"
    sources = {"a.py": "class Word: ...\nclass Own: ...", "b.py": alias, "c.py": "class _Own: ..."}
    assert shared(sources) == {"Word": ["a.py", "b.py"], "Own": ["a.py", "c.py"]}
