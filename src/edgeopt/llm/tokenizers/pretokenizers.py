"""llama.cpp's pre-tokenizers, recognised by what ``tokenizer.json`` says rather than by a hash.

llama.cpp has each pre-tokenizer compiled in under a name (``tokenizer.ggml.pre``). What the file
says is brought to a list of steps, each a regular expression whose matches stand alone; the table
says under which name llama.cpp runs the same steps. It applies no Unicode normalization: text that
NFC would change is cut differently than by the model's own tokenizer.

Names and expressions: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.errors import SourceError, UsageError
from edgeopt.files.text import one_line
from edgeopt.llm.tokenizers.folder import listed, mapped

__all__ = ["KNOWN", "Known", "checked_name", "recognise", "steps_of"]

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#: The same thing as others write it.
_SPELLINGS = (
    ("'(?i:[sdmt]|ll|ve|re)", _CONTRACTIONS),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS),
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("\t", r"\t"),
    # possessive quantifiers: nothing in these expressions could give a letter back
    ("?+", "?"),
    ("++", "+"),
    ("*+", "*"),
    (",3}+", ",3}"),
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT, _DIGITS, _UP_TO_3 = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = f"{_CONTRACTIONS}|{_WORD}|{_UP_TO_3}|{_TAIL}"
_QWEN2 = f"{_CONTRACTIONS}|{_WORD}|{_DIGIT}|{_TAIL}"
_O200K = (
    f"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    f"|{_UP_TO_3}|{_CASED_TAIL}"
)
_TEKKEN = f"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|{_DIGIT}|{_CASED_TAIL}"
_JAIS2_TAIL = (
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)"
    r"|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤ"
    "Ⳬ-ⳮⲲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
_PUNCTUATION = "Punctuation Contiguous"


@dataclass(frozen=True)
class Known:
    """A pre-tokenizer of llama.cpp: its steps, and what else hangs on the name there.

    ``ignore_merges``: a piece that is a token as it stands is taken whole. ``cleans``: spaces
    before punctuation are dropped when text is made of tokens.
    """

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False
    cleans: bool = False


#: The first of several equal rows is taken.
KNOWN: tuple[Known, ...] = (
    Known("gpt-2", (_GPT2,), cleans=True),
    Known("trillion", (_GPT2,)),
    Known("llama-bpe", (_LLAMA3,), ignore_merges=True, cleans=True),
    Known("smaug-bpe", (_LLAMA3,), cleans=True),
    Known("qwen2", (_QWEN2,)),
    Known("stablelm2", (_QWEN2,), cleans=True),
    Known(
        "qwen35",
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Known("smollm", (_DIGIT, _GPT2)),
    Known("starcoder", (_DIGIT, _GPT2), cleans=True),
    Known("tekken", (_TEKKEN,), ignore_merges=True),
    Known("gpt-4o", (_O200K,)),
    Known("tiny_aya", (r"\d{1,3}(?=(?:\d{3})*\b)", _O200K)),
    Known("falcon", (_PUNCTUATION, _GPT2, _DIGITS, "[0-9][0-9][0-9]"), cleans=True),
    Known("deepseek-v3", (_UP_TO_3, _CJK, _DEEPSEEK3)),
    Known("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _DIGIT)),
    Known(
        "deepseek-llm",
        (
            r"[\r\n]",
            _DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            _DIGIT,
        ),
    ),
    Known("minicpm5", (_UP_TO_3, f"{_CONTRACTIONS}|{_WORD}|{_DIGITS}|{_TAIL}"), True, True),
    Known("superbpe", (_DIGITS, r"(?=(\d{3})+(?!\d))")),
    Known(
        "bailingmoe",
        (
            rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]"
            r"|\s+(?!\S)|\s+",
        ),
    ),
    Known(
        "seed-coder",
        (
            rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+",
        ),
    ),
    Known(
        "exaone-moe",
        (
            rf"{_CONTRACTIONS}|{_START}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
        cleans=True,
    ),
    Known("jais-2", (f"{_CONTRACTIONS}|{_WORD}|{_UP_TO_3}|{_JAIS2_TAIL}",), cleans=True),
    Known("bloom", (_BLOOM,), cleans=True),
    Known("poro-chat", (_BLOOM,)),
    Known("viking", (_BLOOM, _DIGIT)),
)

#: Normalizers that leave ordinary text as it is.
_HARMLESS = frozenset({"NFC"})


def steps_of(tokenizer: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """What ``tokenizer.json`` does to a text before merging, one expression a step."""
    normalizer = mapped(tokenizer.get("normalizer"), path, "normalizer")
    before = [
        f"normalizer {one_line(str(part.get('type')), 40)}"
        for part in _flat(normalizer, "normalizers", path)
        if part.get("type") not in _HARMLESS
    ]
    pre = mapped(tokenizer.get("pre_tokenizer"), path, "pre_tokenizer")
    return (*before, *(s for part in _flat(pre, "pretokenizers", path) for s in _steps(part)))


def _flat(part: dict[str, Any], inner: str, path: Path) -> list[dict[str, Any]]:
    """The parts of a Sequence, or the one part there is."""
    if not part:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [mapped(each, path, inner) for each in listed(part.get(inner), path, inner)]


def _steps(part: Mapping[str, Any]) -> tuple[str, ...]:
    kind = part.get("type")
    if kind == "ByteLevel":
        prefix = ("a space before the text",) if part.get("add_prefix_space") is True else ()
        return (*prefix, _canonical(_GPT2)) if part.get("use_regex", True) is True else prefix
    if kind == "Digits":
        return (_DIGIT if part.get("individual_digits") is True else _DIGITS,)
    behavior = one_line(str(part.get("behavior")), 40)
    if kind == "Split":
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        # matches kept and all else dropped is the same, for an expression that matches everything
        alone = behavior == "Isolated" or (behavior == "Removed" and part.get("invert") is True)
        if isinstance(regex, str) and alone:
            return (_canonical(regex),)
        return (f"Split {behavior} {one_line(str(pattern), 200)}",)
    if kind == "Punctuation":
        return (f"Punctuation {behavior}",)
    return (one_line(str(kind), 40),)


def _canonical(regex: str) -> str:
    for theirs, ours in _SPELLINGS:
        regex = regex.replace(theirs, ours)
    return regex


_BY_STEPS: dict[tuple[str, ...], list[Known]] = {}
for _known in KNOWN:
    _BY_STEPS.setdefault(tuple(map(_canonical, _known.steps)), []).append(_known)


def recognise(
    steps: tuple[str, ...], *, ignore_merges: bool, cleans: bool | None, path: Path
) -> str:
    """llama.cpp's name for these steps.

    Where several do the same, the one with the same ``ignore_merges`` (it matters only for tokens
    that no merges lead to) and then the same cleaning, where that is known, is taken. SourceError
    where none does.
    """
    found = _BY_STEPS.get(steps)
    if found is None:
        raise SourceError(_unknown(steps, path))
    best = min(
        found, key=lambda k: (k.ignore_merges != ignore_merges, cleans not in (None, k.cleans))
    )
    return best.name


def _unknown(steps: tuple[str, ...], path: Path) -> str:
    shown = " then ".join(one_line(step, 400) for step in steps) or "no splitting at all"
    text = "\n".join(steps)

    def likeness(known: Known) -> float:
        return difflib.SequenceMatcher(None, text, "\n".join(known.steps), autojunk=False).ratio()

    nearest = max(KNOWN, key=likeness).name if len(text) < 4000 else KNOWN[0].name
    return (
        f"{path}: its pre-tokenizer is none that edgeopt knows in llama.cpp: {shown}; the nearest "
        f"is {nearest}: if that is the one, say so with --pre-tokenizer {nearest}"
    )


def checked_name(name: str) -> str:
    """A name given by the user; newer llama.cpp may know more than the table here."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (plain.isascii() and plain.isalnum() and len(name) <= 64):
        known = ", ".join(each.name for each in KNOWN)
        raise UsageError(
            f"--pre-tokenizer {one_line(name, 60)!r} is no name of a pre-tokenizer of llama.cpp, "
            f"such as {known}"
        )
    return name
