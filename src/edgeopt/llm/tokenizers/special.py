"""Which tokens begin and end a text, and whether they are put there: GGUF's ``*_token_id`` keys.

The tokens are named in ``tokenizer_config.json`` and ``special_tokens_map.json``, their numbers in
``config.json``; what is put around a text is decided by ``tokenizer.json``'s post-processor, where
it has one, and by the flags in ``tokenizer_config.json`` otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeopt.errors import SourceError
from edgeopt.files.gguf_write import Field, boolean, u32
from edgeopt.files.text import one_line
from edgeopt.llm.tokenizers.folder import TokenizerFolder, listed, mapped, token_text
from edgeopt.llm.tokenizers.notes import KNOWN_ENDS, end_ids
from edgeopt.llm.tokenizers.vocabulary import Vocabulary

__all__ = ["special_fields"]

#: The roles and the names of their keys ("seperator" is the format's own spelling).
_KEYS: Mapping[str, str] = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
_ROLES = (*_KEYS, "cls")


@dataclass
class _Template:
    """What a post-processor puts around a text; None where it says nothing."""

    first: str | None = None
    last: str | None = None
    decided: bool = False
    sep: bool | None = None
    between: str | None = None


@dataclass
class _Special:
    ids: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)


def special_fields(
    files: TokenizerFolder,
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    *,
    add_bos: bool = False,
    add_eos: bool = False,
    model: Mapping[str, int] | None = None,
) -> dict[str, Field]:
    """``*_token_id`` and ``add_*_token``.

    ``add_bos`` and ``add_eos`` hold where no file says anything, and so do the numbers by role
    (``bos``, ``eos``, ...) that the tokenizer's own ``model`` has; its ``unk`` holds always. A
    token that has no row in the embedding is left out, and what has no token is never put around a
    text: llama.cpp would end the process.
    """
    special = _Special(dict(model or {}))
    for role in _ROLES:
        number = _named(role, files, vocabulary)
        if number is None:
            number = _numbered(config.get(f"{role}_token_id"), vocabulary)
        if number is not None and not (role == "unk" and role in special.ids):
            special.ids[role] = number
    for role, default in (("bos", add_bos), ("eos", add_eos)):
        flag = files.config.get(f"add_{role}_token")
        special.flags[role] = flag if isinstance(flag, bool) else default
    _apply(_template(files), special, vocabulary)
    _add_ends(special, end_ids(files, config), vocabulary)
    # BERT's names for the two ends
    for role, other in (("bos", "cls"), ("eos", "sep")):
        if role not in special.ids and other in special.ids:
            special.ids[role] = special.ids[other]
    fields = {
        f"tokenizer.ggml.{key}": u32(special.ids[role])
        for role, key in _KEYS.items()
        if role in special.ids
    }
    for role, flag in special.flags.items():
        fields[f"tokenizer.ggml.add_{role}_token"] = boolean(flag and role in special.ids)
    return fields


def _add_ends(special: _Special, ends: list[int], vocabulary: Vocabulary) -> None:
    """The other tokens that end an answer, where llama.cpp has room for them: those that it knows
    by their text need none."""
    taken = {special.ids.get(role) for role in ("eos", "eot", "eom")}
    for number in ends:
        if number in taken or not 0 <= number < vocabulary.n_vocab:
            continue
        if vocabulary.texts[number] in KNOWN_ENDS:
            continue
        free = next((role for role in ("eos", "eot", "eom") if role not in special.ids), None)
        if free is None:
            return
        special.ids[free] = number


def _named(role: str, files: TokenizerFolder, vocabulary: Vocabulary) -> int | None:
    for source in (files.config, files.special_tokens):
        text = token_text(source.get(f"{role}_token"))
        if text is not None:
            return vocabulary.id_of(text)
    return None


def _numbered(value: Any, vocabulary: Vocabulary) -> int | None:
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < vocabulary.n_vocab else None


def _apply(template: _Template, special: _Special, vocabulary: Vocabulary) -> None:
    if not template.decided:
        return
    for role, text in (("bos", template.first), ("eos", template.last)):
        special.flags[role] = text is not None
        number = None if text is None else vocabulary.id_of(text)
        if number is None:
            continue
        before = special.ids.get(role)
        if role == "eos" and before is not None and before != number:
            # generation ends there all the same
            special.ids.setdefault("eot", before)
        special.ids[role] = number
    if template.sep is not None:
        special.flags["sep"] = template.sep
        number = None if template.between is None else vocabulary.id_of(template.between)
        if template.sep and number is not None:
            special.ids.setdefault("sep", number)


def _template(files: TokenizerFolder) -> _Template:
    path = files.path("tokenizer.json")
    found = _Template()
    top = mapped(files.tokenizer.get("post_processor"), path, "post_processor")
    parts = listed(top.get("processors"), path, "post_processor") if "processors" in top else [top]
    for part in parts:
        fields = mapped(part, path, "post_processor")
        kind = fields.get("type")
        if kind in ("RobertaProcessing", "BertProcessing"):
            found.first, found.last = _pair_head(fields.get("cls")), _pair_head(fields.get("sep"))
            found.decided, found.sep = True, kind == "RobertaProcessing"
            found.between = found.last
        elif kind == "TemplateProcessing":
            _read_template(fields, files, found)
    return found


def _pair_head(value: Any) -> str | None:
    """The text of ``["[CLS]", 101]``."""
    head = value[0] if isinstance(value, list) and value else value
    return head if isinstance(head, str) else None


def _read_template(fields: Mapping[str, Any], files: TokenizerFolder, found: _Template) -> None:
    single = _pieces(fields, "single", files)
    if "A" not in single:
        return
    at = single.index("A")
    first, last = single[:at], single[at + 1 :]
    if len(first) > 1 or len(last) > 1:
        raise SourceError(
            f"{files.path('tokenizer.json')}: its post-processor puts "
            f"{one_line(' '.join(first) or 'nothing', 80)} before a text and "
            f"{one_line(' '.join(last) or 'nothing', 80)} after it; llama.cpp puts one token at "
            "most: shorten the template (post_processor, single)"
        )
    found.first = first[0][1:] if first else None
    found.last = last[0][1:] if last else None
    found.decided = True
    pair = _pieces(fields, "pair", files)
    if "A" in pair and "B" in pair:
        between = pair[pair.index("A") + 1 : pair.index("B")]
        # the end of the first text is one of them, where texts have an end
        found.sep = len(between) > (1 if last else 0)
        found.between = between[-1][1:] if between else None


def _pieces(fields: Mapping[str, Any], name: str, files: TokenizerFolder) -> list[str]:
    """``A`` and ``B`` for the texts, ``=`` and its text for a special token."""
    path = files.path("tokenizer.json")
    where = f"post_processor {name}"
    pieces = []
    for piece in listed(fields.get(name), path, where):
        entry = mapped(piece, path, where)
        sequence = mapped(entry.get("Sequence"), path, where).get("id")
        special = mapped(entry.get("SpecialToken"), path, where).get("id")
        if isinstance(sequence, str):
            pieces.append(sequence)
        elif isinstance(special, str):
            pieces.append(f"={special}")
    return pieces
