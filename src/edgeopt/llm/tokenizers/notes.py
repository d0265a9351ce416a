"""What of a tokenizer llama.cpp does otherwise, found in the files and said to the user.

llama.cpp (src/llama-vocab.cpp) knows three tokens that end an answer (``eos``, ``eot``, ``eom``)
and those whose text it recognises; and it takes the space around a token only for models that it
knows by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.files.gguf_write import Field
from edgeopt.llm.tokenizers.folder import TokenizerFolder, listed, mapped

__all__ = ["KNOWN_ENDS", "end_ids", "phi3_spaces", "token_notes"]

#: Texts that llama.cpp takes for the end of an answer, whatever their number.
KNOWN_ENDS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    }
)

#: What its rule for Phi-3 leaves alone, and requires to be there.
_PHI3_TOKENS = frozenset({"<s>", "<unk>", "<|endoftext|>"})

#: Normalizers that make other letters: a token that is looked for behind them is found in texts
#: that spell it otherwise. NFC and NFD leave alone what is spelled as usual.
_RESPELLING = frozenset(
    {"Lowercase", "StripAccents", "BertNormalizer", "NFKC", "NFKD", "Nmt", "Precompiled"}
)

#: Tokens named in a note.
_SHOWN = 8


def end_ids(files: TokenizerFolder, config: Mapping[str, Any]) -> list[int]:
    """Every token that ends an answer, of ``config.json`` and ``generation_config.json``."""
    found: dict[int, None] = {}
    for source in (config, files.generation):
        given = source.get("eos_token_id")
        for number in given if isinstance(given, list) else [given]:
            if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
                found[number] = None
    return list(found)


def phi3_spaces(folder: Path, fields: Mapping[str, Field]) -> bool | None:
    """Whether special tokens take the space behind them as llama.cpp's rule for Phi-3 has it; None
    where no file says anything of it."""
    tokens = fields.get("tokenizer.ggml.tokens")
    if tokens is None or not set(tokens.value) >= _PHI3_TOKENS:
        return False
    added = [t for t in TokenizerFolder(folder).added_tokens() if t.special]
    if not added:
        return None
    return any(t.rstrip for t in added if t.text not in _PHI3_TOKENS)


def token_notes(
    folder: Path, config: Mapping[str, Any], fields: Mapping[str, Field], phi3: bool
) -> tuple[str, ...]:
    """Ends and spaces that the file does not carry, each with the tokens it is about. ``phi3``:
    whether llama.cpp will apply its rule for Phi-3."""
    files = TokenizerFolder(folder)
    tokens = fields.get("tokenizer.ggml.tokens")
    texts = list(tokens.value) if tokens is not None else []
    known = {
        int(fields[key].value)
        for key in (f"tokenizer.ggml.{role}_token_id" for role in ("eos", "eot", "eom"))
        if key in fields
    }
    lost = [
        texts[number] if number < len(texts) else f"token {number}"
        for number in end_ids(files, config)
        if number not in known and (number >= len(texts) or texts[number] not in KNOWN_ENDS)
    ]
    spaced = [
        token.text
        for token in files.added_tokens()
        if token.id < len(texts)
        and (
            token.lstrip
            or token.single_word
            or token.rstrip != (phi3 and token.special and token.text not in _PHI3_TOKENS)
        )
    ]
    respelled = [
        token.text
        for token in files.added_tokens()
        if token.id < len(texts) and token.normalized and any(map(str.isalpha, token.text))
    ]
    notes = []
    if lost:
        notes.append(
            f"end an answer in the source and not in llama.cpp, which has three such tokens:"
            f" {_listed(lost)}; give them as stops where the file is run"
        )
    if spaced:
        notes.append(
            "take the spaces around them, or stand alone only (lstrip, rstrip, single_word), in the"
            f" source and not in llama.cpp: {_listed(spaced)}"
        )
    if respelled and _respells(files):
        notes.append(
            "are found however a text spells them (normalized: letter case, accents, widths) in the"
            f" source, and in llama.cpp as they stand only: {_listed(respelled)}"
        )
    return tuple(notes)


def _respells(files: TokenizerFolder) -> bool:
    """Whether the normalizer of ``tokenizer.json`` makes other letters of some."""
    path = files.path("tokenizer.json")
    top = mapped(files.tokenizer.get("normalizer"), path, "normalizer")
    for part in [top, *listed(top.get("normalizers"), path, "normalizer")]:
        step = mapped(part, path, "normalizer")
        kind = str(step.get("type"))
        kept = step.get("lowercase") is False and not step.get("strip_accents")
        if kind in _RESPELLING and not (kind == "BertNormalizer" and kept):
            return True
    return False


def _listed(texts: list[str]) -> str:
    shown = [re.sub(r"\s", " ", text)[:40] for text in texts[:_SHOWN]]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(shown) + more
