"""Tokenizers: the files beside a model become GGUF's ``tokenizer.*`` keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import SourceError
from edgeopt.files.gguf_write import Field
from edgeopt.files.text import one_line
from edgeopt.llm.tokenizers.byte_bpe import read_byte_bpe, read_slow_byte_bpe
from edgeopt.llm.tokenizers.chat_template import chat_fields
from edgeopt.llm.tokenizers.folder import TokenizerFolder, listed, mapped
from edgeopt.llm.tokenizers.metaspace import read_metaspace_bpe, read_unigram
from edgeopt.llm.tokenizers.pretokenizers import checked_name
from edgeopt.llm.tokenizers.sentencepiece import read_sentencepiece
from edgeopt.llm.tokenizers.wordpiece import read_wordpiece

__all__ = ["read_tokenizer"]

#: Families whose tokenizer is also that of models with more: ``<image_soft_token>`` of gemma 3
#: has a row in the checkpoints that see only.
_SHARED = frozenset({"gemma3"})
_SENTENCEPIECE = ("tokenizer.model", "spiece.model")


def read_tokenizer(
    folder: Path,
    config: Mapping[str, Any],
    architecture: str,
    n_vocab: int,
    pre: str | None = None,
) -> dict[str, Field]:
    """``tokenizer.*`` of the model in ``folder``.

    ``config`` is its ``config.json``, ``architecture`` GGUF's name, ``n_vocab`` the rows of the
    embedding: tokens that the files lack become unused ones, ``[PAD32000]``. ``pre`` overrides
    llama.cpp's pre-tokenizer, which is otherwise recognised from ``tokenizer.json``; it concerns
    byte-level BPE only.

    ``tokenizer.json`` is what transformers obeys; SentencePiece's own file is preferred where both
    describe the same tokenizer, as it has the scores.

    Raises SourceError where files are missing, where the vocabulary is larger than the embedding,
    or where llama.cpp has no such tokenizer; FormatError where a file breaks its format.
    """
    if pre is not None:
        pre = checked_name(pre)
    files = TokenizerFolder(folder, n_vocab if architecture in _SHARED else None)
    fields = _model_fields(files, config, architecture, n_vocab, pre)
    return {**fields, **chat_fields(files)}


def _model_fields(
    files: TokenizerFolder,
    config: Mapping[str, Any],
    architecture: str,
    n_vocab: int,
    pre: str | None,
) -> dict[str, Field]:
    fast = _fast_kind(files) if files.has("tokenizer.json") else None
    piece_file = next((name for name in _SENTENCEPIECE if files.has(name)), None)
    if fast == "byte-level BPE":
        return read_byte_bpe(files, config, n_vocab, pre)
    if fast == "WordPiece":
        return read_wordpiece(files, config, n_vocab)
    if fast == "BPE" and piece_file is not None:
        return read_sentencepiece(files, config, n_vocab, piece_file)
    if fast == "BPE":
        return read_metaspace_bpe(files, config, n_vocab)
    if fast == "Unigram":
        # its numbers may be shifted against those in SentencePiece's file
        return read_unigram(files, config, n_vocab)
    if piece_file is not None:
        return read_sentencepiece(files, config, n_vocab, piece_file)
    if files.has("vocab.json") and files.has("merges.txt"):
        return read_slow_byte_bpe(files, config, architecture, n_vocab, pre)
    if files.has("vocab.txt"):
        return read_wordpiece(files, config, n_vocab)
    raise SourceError(
        f"{files.folder}: no tokenizer; tokenizer.json, tokenizer.model, vocab.json with "
        "merges.txt, or vocab.txt belongs beside the model (tokenizer.save_pretrained writes it)"
    )


def _fast_kind(files: TokenizerFolder) -> str:
    """What kind of model ``tokenizer.json`` holds."""
    model = files.model
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind == "BPE":
        return "byte-level BPE" if _on_bytes(files) else "BPE"
    if kind in ("Unigram", "WordPiece"):
        return str(kind)
    shown = one_line(str(kind), 40)
    raise SourceError(
        f"{files.path('tokenizer.json')}: its model is {shown}; edgeopt knows BPE, Unigram and "
        "WordPiece"
    )


def _on_bytes(files: TokenizerFolder) -> bool:
    path = files.path("tokenizer.json")
    for name, inner in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        top = mapped(files.tokenizer.get(name), path, name)
        for part in [top, *listed(top.get(inner), path, name)]:
            if mapped(part, path, name).get("type") == "ByteLevel":
                return True
    return False
