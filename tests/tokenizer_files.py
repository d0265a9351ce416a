"""Tokenizer files made for tests, and texts to try them on."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeopt.files.gguf_write import Field
from edgeopt.llm.tokenizers import read_tokenizer

#: Text of every sort; all of it in NFC, as llama.cpp does not normalize.
TEXTS = (
    "Hello world",
    " leading space, and two  spaces,   three,    four\ttab\t\ttabs ",
    "line\nline\n\nparagraph\r\nwindows\r\n\r\n  indented\n\n\n   \n end\n",
    "I'm you're he'll we've they'd it's DON'T I'LL 'tis rock'n'roll ''quoted''",
    "0 1 12 123 1234 12345 1234567 3.14 1,000,000 2026-11-22 x1y2 0xFF 1e-9",
    "def f(x: int) -> str:\n    return f'{x!r}' + \"\\n\"  # comment\n\tif x<=3 and y!=4: pass\n",
    "¿Dónde está? Füße, naïve, Ærøskøbing, čeština, Łódź; ΑΒΓ αβγ; Привет, мир!",
    "你好，世界。これは日本語です。한국어 텍스트 ไทย हिन्दी عربى עברית",
    "emoji 🙂🚀👩‍👩‍👧‍👦🇩🇪 ✅ ½ ² ① ∑∫√ → € £ 100% @user #tag $5 a_b C++ C# & * ^ ~ |",
    "......!!!???---===+++~~~///\\\\\\(((()))[[[]]]{}<><<>>``````\"\"''",
    "https://example.org/path?q=1&r=2#frag mail@example.com /usr/local/bin C:\\Windows",
    "ALLCAPS CamelCase snake_case kebab-case MiXeD iPhone McDonald's O'Neill's",
    "\u00a0nbsp\u3000ideographic\u200bzero\u2028separator\x07bell",
    " ",
    "  ",
    "\n",
    "a",
)


def wikitext(count: int) -> list[str]:
    default = Path(__file__).parents[1].joinpath("..", "shared", "data")
    path = Path(os.environ.get("EDGEOPT_TEST_DATA", default), "wikitext-2-valid.txt")
    if not path.exists():
        pytest.skip(f"{path} is not there")
    lines = path.read_text().split("\n")
    return [line for line in lines if line.strip()][:count]


def write(folder: Path, name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    folder.joinpath(name).write_text(text)


def read(
    folder: Path, n_vocab: int, architecture: str = "llama", **config: Any
) -> dict[str, Field]:
    return read_tokenizer(folder, config, architecture, n_vocab)


def same_ids(vocab: Any, theirs: Any, texts: Sequence[str]) -> None:
    """``theirs``: a tokenizer of Hugging Face's library; ``vocab``: llama.cpp's."""
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert vocab.encode(text) == expected, (text, [vocab.text(i) for i in vocab.encode(text)])


def packaged(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations or [] if spec else []
    found = [file for place in places for file in Path(place).glob(name)]
    if not found:
        pytest.skip(f"the package {package} is not installed")
    return found[0]


A, B = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}


def token(text: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": 0}}


def template(*single: Any, pair: Sequence[Any] = ()) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(single), "pair": list(pair)}


def small(folder: Path, post: Any = None, added: Sequence[Any] = (), **config: Any) -> None:
    """A byte-level tokenizer of 259 tokens: the bytes, then <s>, </s>, <sep>."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    named = [
        {"id": 256 + at, "content": text, "special": True}
        for at, text in enumerate(("<s>", "</s>", "<sep>"))
    ]
    write(
        folder,
        "tokenizer.json",
        {
            "added_tokens": [*named, *added],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
            "post_processor": post,
            "model": {
                "type": "BPE",
                "vocab": {text: at for at, text in enumerate(alphabet)},
                "merges": [],
            },
        },
    )
    write(folder, "tokenizer_config.json", config)
