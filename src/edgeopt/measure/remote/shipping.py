"""Model files on their way to another machine: what they are called there.

A model and the files that it maps keep their places relative to one another, and their names, in
a folder of their own; two models from one folder share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeopt.core import Progress
from edgeopt.errors import SourceError
from edgeopt.measure.remote.host import Host

__all__ = ["Shipping"]

_MODELS = "models/"


class Shipping:
    """What was sent of which model, over one connection."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._folders: dict[Path, str] = {}
        self._there: dict[str, str] = {}

    def send(
        self, models: Mapping[Path, Iterable[Path]], progress: Progress | None = None
    ) -> dict[Path, str]:
        """Send each model and its files (itself among them, or not); local file -> path there.

        Files of earlier models go where there is no room for all. Errors as :meth:`Host.put`, and
        SourceError for a file that does not lie beside or below its model.
        """
        names: dict[Path, str] = {}
        for model, files in models.items():
            folder = self._folders.setdefault(model.parent, f"{_MODELS}{len(self._folders)}")
            for file in (model, *files):
                try:
                    inside = file.relative_to(model.parent)
                except ValueError:
                    raise SourceError(
                        f"{file}: not beside or below {model}, so it cannot be sent along; copy"
                        " both into one folder"
                    ) from None
                names[file] = f"{folder}/{inside.as_posix()}"
        sent = {name: file for file, name in names.items()}
        there = self._host.put(sent, progress, instead_of=_MODELS)
        found = {file: there[name] for file, name in names.items()}
        self._there.update({path: str(file) for file, path in found.items()})
        return found

    def as_here(self, value: Any) -> Any:
        """A JSON value in which paths of sent files, wherever they stand in a text, are ours."""
        if isinstance(value, str):
            for there, here in self._there.items():
                value = value.replace(there, here)
            return value
        if isinstance(value, Mapping):
            return {key: self.as_here(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.as_here(item) for item in value]
        return value
