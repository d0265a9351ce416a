"""llama.cpp's own tokenizers, loaded from metadata alone: the oracle of ``tokenizer.*`` keys."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import llama_cpp

from edgeopt.files.gguf_write import Field, GgufLayout, string


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """llama.cpp prints every special token it meets."""


class LlamaVocab:
    """The vocabulary of a loaded file."""

    def __init__(self, model: ctypes.c_void_p) -> None:
        self.vocab = llama_cpp.llama_model_get_vocab(model)

    def encode(self, text: str, *, special: bool = False, parse: bool = True) -> list[int]:
        raw = text.encode()
        room = len(raw) * 4 + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), ids, room, special, parse)
        assert count >= 0
        return list(ids[:count])

    def piece(self, number: int) -> bytes:
        buffer = ctypes.create_string_buffer(4096)
        count = llama_cpp.llama_token_to_piece(self.vocab, number, buffer, 4096, 0, True)
        assert count >= 0
        return buffer.raw[:count]

    def decode(self, ids: list[int]) -> bytes:
        """The pieces one after another, with no cleaning of spaces."""
        return b"".join(map(self.piece, ids))

    def text(self, number: int) -> str:
        return llama_cpp.llama_vocab_get_text(self.vocab, number).decode()

    def special(self, role: str) -> int:
        """``bos``, ``eos``, ``eot``, ``sep``, ``pad``, ``nl``; -1 where there is none."""
        return int(getattr(llama_cpp, f"llama_vocab_{role}")(self.vocab))

    def __len__(self) -> int:
        return int(llama_cpp.llama_vocab_n_tokens(self.vocab))


@contextmanager
def loaded(fields: Mapping[str, Field], architecture: str = "llama") -> Iterator[LlamaVocab]:
    """A file with these keys and no tensors, as llama.cpp loads it."""
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
    keys = {"general.architecture": string(architecture), **fields}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.gguf")
        path.write_bytes(GgufLayout.of(keys, []).header)
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, "llama.cpp does not take the file"
    try:
        yield LlamaVocab(model)
    finally:
        llama_cpp.llama_model_free(model)
