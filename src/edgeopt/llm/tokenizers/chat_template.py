"""Chat templates, byte for byte.

Of several places the one that transformers obeys wins: ``chat_template.jinja`` (with
``additional_chat_templates/*.jinja``), then ``chat_template.json``, then the field of
``tokenizer_config.json``, a template or a list of named ones.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError
from edgeopt.files.gguf_write import Field, array, string
from edgeopt.files.reading import read_json, read_whole, reading
from edgeopt.llm.tokenizers.folder import TokenizerFolder, listed, mapped

__all__ = ["chat_fields"]

_LIMIT = 4 << 20
_MOST = 64


def chat_fields(files: TokenizerFolder) -> dict[str, Field]:
    """``tokenizer.chat_template``, and ``tokenizer.chat_template.NAME`` for named ones."""
    templates = _templates(files)
    fields: dict[str, Field] = {}
    names = []
    for name, template in templates.items():
        if name == "default":
            continue
        key = re.sub("[^A-Za-z0-9]", "_", name)
        if key not in names:
            names.append(key)
            fields[f"tokenizer.chat_template.{key}"] = string(template)
    if names:
        fields["tokenizer.chat_templates"] = array("string", names)
    if "default" in templates:
        fields["tokenizer.chat_template"] = string(templates["default"])
    return fields


def _templates(files: TokenizerFolder) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    if files.has("chat_template.jinja"):
        found["default"] = _text(files.path("chat_template.jinja"))
    more = files.path("additional_chat_templates")
    with reading(more):
        paths = sorted(more.glob("*.jinja")) if more.is_dir() else []
    if len(paths) > _MOST:
        raise FormatError(more, f"holds {len(paths)} templates, at most {_MOST} are taken")
    found.update((path.stem, _text(path)) for path in paths)
    if found:
        return found
    path = files.path("chat_template.json")
    if files.has("chat_template.json"):
        return _named(read_json(path).get("chat_template"), path)
    return _named(files.config.get("chat_template"), files.path("tokenizer_config.json"))


def _named(value: Any, path: Path) -> dict[str, bytes]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": _encoded(value, path)}
    found = {}
    for entry in listed(value, path, "chat_template")[: _MOST + 1]:
        fields = mapped(entry, path, "chat_template")
        name, template = fields.get("name"), fields.get("template")
        if not isinstance(name, str) or not isinstance(template, str):
            raise FormatError(
                path, "a named template needs a name and a template", field="chat_template"
            )
        found[name] = _encoded(template, path)
    if len(found) > _MOST:
        raise FormatError(path, f"more than {_MOST} templates", field="chat_template")
    return found


def _text(path: Path) -> bytes:
    data = read_whole(path, _LIMIT)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(path, "is not UTF-8", offset=error.start) from error
    return data


def _encoded(text: str, path: Path) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(path, "is no valid Unicode", field="chat_template") from error
