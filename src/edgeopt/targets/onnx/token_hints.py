"""What a folder's tokenizer says of token ids: how many there are, and what texts begin and end
with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgeopt.core import InputSpec
from edgeopt.core.packages import is_installed
from edgeopt.data.hint import Hint

__all__ = ["with_tokens"]

#: Inputs that hold a text's ids, as Hugging Face names them.
_IDS = ("input_ids", "decoder_input_ids")

#: Where the tokenizer lies: in the folder itself, or with the transformer of an older embedder.
_FILES = ("tokenizer.json", "0_Transformer/tokenizer.json")


def with_tokens(
    hints: Mapping[str, Hint], inputs: tuple[InputSpec, ...], folder: Path
) -> dict[str, Hint]:
    """``hints`` with ids below the tokenizer's own count (tables are padded beyond it), between the
    special tokens that it puts around a text; unchanged where there is no tokenizer to ask."""
    found = dict(hints)
    names = [spec.name for spec in inputs if spec.name in _IDS]
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if not names or file is None or not is_installed("tokenizers"):
        return found
    asked = _asked(file)
    if asked is None:
        return found
    size, begin, end = asked
    for name in names:
        hint = found.get(name, Hint())
        high = size if hint.high is None else min(size, int(hint.high))
        if all(token < high for token in (*begin, *end)):
            found[name] = replace(hint, low=hint.low or 0, high=high, begin=begin, end=end)
    return found


def _asked(file: Path) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """(ids that there are, those before a text, those behind it); None for a file that the library
    cannot read: what the tokenizer is needed for says so."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a", add_special_tokens=True).ids
    except Exception as error:
        # That is what tokenizers raises for whatever is wrong with the file, and no other class.
        if type(error) is not Exception:
            raise
        return None
    for at in range(len(whole) - len(plain) + 1):
        if plain and whole[at : at + len(plain)] == plain:
            around = whole[:at], whole[at + len(plain) :]
            return tokenizer.get_vocab_size(), tuple(around[0]), tuple(around[1])
    return tokenizer.get_vocab_size(), (), ()
