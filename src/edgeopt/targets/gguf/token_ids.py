"""Token ids of a GGUF made from a folder: as llama.cpp cuts texts, and as the folder's tokenizer.

The oracle is the library that the folder's own file is for: ``tokenizers`` for ``tokenizer.json``,
``sentencepiece`` for ``tokenizer.model``. Ids that differ on plain text mean another model, as do
added tokens that are not found: a failed check. What stands around an added token is cut by rules
that llama.cpp has not all of (a space put before what follows it, ``lstrip``, ``rstrip``,
``single_word``, ``normalized``), and so are runs of spaces that SentencePiece makes one and
transformers does not: that is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core import Check, Source
from edgeopt.core.packages import is_installed
from edgeopt.errors import MissingExtraError
from edgeopt.files.gguf_write import Field
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.tokenizers.folder import TokenizerFolder
from edgeopt.llm.tokenizers.sentencepiece import parse_model
from edgeopt.targets.gguf.checks import ProofPart

__all__ = ["TokenTexts", "check_token_ids", "token_texts"]

#: Text of many sorts, all of it in NFC: llama.cpp normalizes nothing.
_PLAIN = (
    "Hello world",
    " leading space, and two  spaces,   three,    four\ttab\t\ttabs ",
    "line\nline\n\nparagraph\r\nwindows\r\n\r\n  indented\n\n\n   \n end\n",
    "I'm you're he'll we've they'd it's DON'T I'LL rock'n'roll ''quoted''",
    "0 1 12 123 1234 12345 1234567 3.14 1,000,000 2026-11-22 x1y2 0xFF 1e-9",
    "def f(x: int) -> str:\n    return f'{x!r}' + \"\\n\"  # comment\n\tif x<=3: pass\n",
    "¿Dónde está? Füße, naïve, čeština, Łódź; ΑΒΓ αβγ; Привет, мир!",
    "你好，世界。これは日本語です。한국어 텍스트 ไทย हिन्दी عربى עברית",
    "emoji 🙂🚀👩‍👩‍👧‍👦🇩🇪 ✅ ½ ² → € £ 100% @user #tag $5 a_b C++ & * ^ ~ |",
    "......!!!???---===+++///\\\\(((()))[[[]]]{}<><<>>``````\"\"''",
    "https://example.org/path?q=1&r=2#frag ALLCAPS CamelCase snake_case MiXeD",
    "\u00a0nbsp\u3000ideographic\u200bzero\u2028separator",
    "a",
)

#: Added tokens asked about at most: some vocabularies have thousands of unused ones.
_ADDED = 256

_PIECES = ("tokenizer.model", "spiece.model")
#: What SentencePiece drops of a text, where it drops spaces.
_RUN = re.compile("^ | $|  ")

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class TokenTexts:
    """Texts, the source's ids of each, and how many of the first must be cut the same way."""

    texts: tuple[str, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()
    binding: int = 0
    unproven: tuple[str, ...] = ()


def token_texts(source: Source, model: LanguageModel) -> TokenTexts:
    """What to ask llama.cpp: nothing of a source that is no folder, whose tokenizer's keys were
    copied, or of a model without a tokenizer. Why nothing can be asked stands in ``unproven``."""
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    folder = source.path
    if source.kind == "gguf" or tokens is None or not folder.is_dir():
        return TokenTexts()
    try:
        found = _source_tokenizer(folder, tokens)
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        return TokenTexts(unproven=(f"token ids: the folder's tokenizer does not load: {reason}",))
    except MissingExtraError as error:
        return TokenTexts(unproven=(str(error),))
    if found is None:
        missing = "token ids: neither tokenizer.json nor tokenizer.model is in the folder"
        return TokenTexts(unproven=(missing,))
    encode, binding, named = found
    texts = (*binding, *named)
    return TokenTexts(texts, tuple(tuple(encode(text)) for text in texts), len(binding))


def _source_tokenizer(
    folder: Path, tokens: Field
) -> tuple[Encode, tuple[str, ...], tuple[str, ...]] | None:
    """How the folder cuts a text, nothing put around it; the texts that must be cut the same way,
    those whose differences are named. None where no library reads the folder's files.

    ValueError, RuntimeError or OSError for what the libraries cannot read.
    """
    if (file := folder / "tokenizer.json").exists():
        rows = len(tokens.value)
        added = [t.text for t in TokenizerFolder(folder).added_tokens() if t.id < rows and t.text]
        added = added[:_ADDED]
        return _fast(file), (*_PLAIN, *added), tuple(f"one {t} two{t}three" for t in added)
    pieces = next((path for name in _PIECES if (path := folder / name).exists()), None)
    if pieces is None:
        return None
    drops = parse_model(pieces).loses_spaces
    named = tuple(text for text in _PLAIN if drops and _RUN.search(text))
    return _sentencepiece(pieces), tuple(text for text in _PLAIN if text not in named), named


def _fast(file: Path) -> Encode:
    _require("tokenizers")
    from tokenizers import Tokenizer

    try:
        inner = Tokenizer.from_file(str(file))
    except Exception as error:
        # That is what tokenizers raises for whatever is wrong with the file, and no other class.
        if type(error) is not Exception:
            raise
        raise ValueError(str(error)) from error
    inner.no_truncation()
    inner.no_padding()
    return lambda text: list(inner.encode(text, add_special_tokens=False).ids)


def _sentencepiece(file: Path) -> Encode:
    _require("sentencepiece")
    from sentencepiece import SentencePieceProcessor

    inner = SentencePieceProcessor(model_file=str(file))
    return lambda text: list(inner.encode(text))


def _require(package: str) -> None:
    if not is_installed(package):
        raise MissingExtraError(package, "torch", "comparing token ids with the folder's own")


def check_token_ids(
    asked: TokenTexts, cut: Sequence[Sequence[int]], *, chosen: bool = False
) -> ProofPart:
    """llama.cpp's ids (``cut``) against the source's. ``chosen``: the user named the rule that
    splits text, knowing that llama.cpp has none like the source's; differences are then named."""
    if not asked.texts:
        return ProofPart(unproven=asked.unproven)
    pairs = list(zip(asked.texts, asked.ids, cut, strict=True))
    binding, around = pairs[: asked.binding], pairs[asked.binding :]
    wrong = [pair for pair in binding if tuple(pair[2]) != pair[1]]
    loose = [pair for pair in around if tuple(pair[2]) != pair[1]]
    found = {"texts": len(pairs), "differ": len(wrong), "named": len(loose)}
    unproven = []
    if loose:
        unproven.append(
            f"texts around added tokens or with runs of spaces: {len(loose)} of {len(around)} are"
            f" cut otherwise than in the source, {_first(loose)}"
        )
    if wrong and chosen:
        unproven.append(
            f"token ids: with the given --pre-tokenizer {len(wrong)} of {len(binding)} texts are"
            f" cut otherwise than in the source, {_first(wrong)}"
        )
        return ProofPart(unproven=tuple(unproven), found={"token_ids": found})
    check = Check(
        "token ids",
        not wrong,
        f"{len(wrong)} of {len(binding)} texts differ, {_first(wrong)}"
        if wrong
        else f"those of the source on {len(binding)} texts",
        "llama.cpp cuts texts into the source's tokens",
        "the model would read other text than it was trained on: name the rule that splits text"
        " with --pre-tokenizer, or run the source's tokenizer beside the file",
    )
    return ProofPart((check,), tuple(unproven), {"token_ids": found})


def _first(pairs: Sequence[tuple[str, tuple[int, ...], Sequence[int]]]) -> str:
    """The first differing text, and the ids from where they part."""
    text, ours, theirs = pairs[0]
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    sides = (" ".join(map(str, ids[at : at + 4])) or "nothing" for ids in (ours, theirs))
    want, got = sides
    return f"first {text[:40]!r}: {got} in place of {want} at token {at}"
