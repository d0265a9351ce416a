"""The tokenizer's files in a folder, read once, and what of their JSON can be trusted.

Which file means what: https://huggingface.co/docs/transformers/main_classes/tokenizer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError
from edgeopt.files.reading import read_json, read_whole, reading
from edgeopt.files.text import one_line

__all__ = [
    "MAX_JSON",
    "AddedToken",
    "TokenizerFolder",
    "listed",
    "mapped",
    "numbered",
    "read_lines",
    "token_text",
]

#: The largest files of this kind are under 40 MB (vocabularies of 262,144 tokens with merges).
MAX_JSON = 128 << 20

_CONFIG_LIMIT = 16 << 20


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before anything else is done to it."""

    id: int
    text: str
    special: bool
    #: The file that says so, for messages.
    path: Path
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    #: Looked for in the normalized text.
    normalized: bool = False


class TokenizerFolder:
    """What lies in the folder; a file that is not there reads as empty.

    Added tokens numbered ``rows`` or more are left out, where that is given.
    """

    def __init__(self, folder: Path, rows: int | None = None) -> None:
        self.folder = folder
        self._rows = rows

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str) -> bool:
        with reading(self.path(name)):
            return self.path(name).exists()

    def _object(self, name: str, limit: int = _CONFIG_LIMIT) -> dict[str, Any]:
        return read_json(self.path(name), limit=limit) if self.has(name) else {}

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """``tokenizer.json``."""
        return self._object("tokenizer.json", MAX_JSON)

    @cached_property
    def config(self) -> dict[str, Any]:
        """``tokenizer_config.json``."""
        return self._object("tokenizer_config.json")

    @cached_property
    def generation(self) -> dict[str, Any]:
        """``generation_config.json``."""
        return self._object("generation_config.json")

    @cached_property
    def special_tokens(self) -> dict[str, Any]:
        """``special_tokens_map.json``."""
        return self._object("special_tokens_map.json")

    @property
    def model(self) -> dict[str, Any]:
        """The ``model`` of ``tokenizer.json``."""
        return mapped(self.tokenizer.get("model"), self.path("tokenizer.json"), "model")

    @property
    def tokenizer_class(self) -> str:
        """``LlamaTokenizer`` for ``LlamaTokenizerFast`` too; empty where it is not said."""
        name = self.config.get("tokenizer_class")
        return name.removesuffix("Fast") if isinstance(name, str) else ""

    def added_tokens(self) -> list[AddedToken]:
        """Added tokens by id; of two files that speak of one id, the last here wins:
        ``added_tokens.json``, ``tokenizer_config.json``, ``tokenizer.json``."""
        found = {token.id: token for token in self._oldest()}
        found.update((token.id, token) for token in self._decoder())
        found.update((token.id, token) for token in self._listed())
        return [found[number] for number in sorted(found) if self.reaches(number)]

    def reaches(self, number: int) -> bool:
        """Whether the model has a row for this token, or is expected to have one."""
        return self._rows is None or number < self._rows

    def _oldest(self) -> Iterator[AddedToken]:
        path = self.path("added_tokens.json")
        named = self._special_texts()
        for text, number in self._object("added_tokens.json").items():
            yield AddedToken(numbered(number, path, text), text, text in named, path)

    def _decoder(self) -> Iterator[AddedToken]:
        path = self.path("tokenizer_config.json")
        entries = mapped(self.config.get("added_tokens_decoder"), path, "added_tokens_decoder")
        for key, entry in entries.items():
            field = f"added_tokens_decoder {key!r}"
            number = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else None
            yield _added(numbered(number, path, field), entry, path, field)

    def _listed(self) -> Iterator[AddedToken]:
        path = self.path("tokenizer.json")
        for at, entry in enumerate(
            listed(self.tokenizer.get("added_tokens"), path, "added_tokens")
        ):
            field = f"added_tokens[{at}]"
            number = mapped(entry, path, field).get("id")
            yield _added(numbered(number, path, field), entry, path, field)

    def _special_texts(self) -> set[str]:
        texts = set()
        for source in (self.special_tokens, self.config):
            for key, value in source.items():
                if key.endswith("_token") and (text := token_text(value)) is not None:
                    texts.add(text)
            more = source.get("additional_special_tokens")
            if isinstance(more, list):
                texts.update(text for value in more if (text := token_text(value)) is not None)
        return texts


def _added(number: int, entry: Any, path: Path, field: str) -> AddedToken:
    fields = mapped(entry, path, field)
    text = fields.get("content")
    if not isinstance(text, str):
        raise FormatError(path, f"content is {_kind(text)}, a string was expected", field=field)
    flags = (fields.get(name) is True for name in ("lstrip", "rstrip", "single_word", "normalized"))
    return AddedToken(number, text, fields.get("special") is True, path, *flags)


def token_text(value: Any) -> str | None:
    """A token's text where a file names one: a string, or an object with ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def mapped(value: Any, path: Path, field: str) -> dict[str, Any]:
    """A JSON object; empty where there is none. FormatError where it is something else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError(path, f"is {_kind(value)}, an object was expected", field=field)
    return value


def listed(value: Any, path: Path, field: str) -> list[Any]:
    """A JSON list; empty where there is none. FormatError where it is something else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise FormatError(path, f"is {_kind(value)}, a list was expected", field=field)
    return value


def numbered(value: Any, path: Path, field: str) -> int:
    """A token's number. FormatError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FormatError(
            path,
            f"the token's id is {_kind(value)}, a number from 0 on was expected",
            field=one_line(field, 80),
        )
    return value


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, split at line feeds only (a token may be another line break)."""
    data = read_whole(path, MAX_JSON)
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(path, "is not UTF-8", offset=error.start) from error
    return [line.removesuffix("\r") for line in lines]


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, (int, float, bool)):
        return one_line(repr(value), 30)
    return f"a JSON {type(value).__name__}"
