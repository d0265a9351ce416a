"""From a tiny model of transformers to a GGUF file at F32, and what llama.cpp makes of it."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Source
from edgeopt.files.gguf_write import Field, GgufLayout, string, writing_gguf
from edgeopt.files.open import open_source
from edgeopt.llm.families import family_of
from edgeopt.llm.families.base import Family


def opened(folder: Path) -> tuple[dict[str, Any], Source, Family]:
    config = json.loads((folder / "config.json").read_text())
    return config, open_source(folder), family_of(config, folder)


def write_gguf(folder: Path, out: Path, extra: Mapping[str, Field] | None = None) -> Path:
    """The folder as GGUF at F32, with tokens that have numbers and no text."""
    config, source, family = opened(folder)
    fields = {
        "general.architecture": string(family.name),
        "tokenizer.ggml.model": string("no_vocab"),
        **family.metadata(config, folder),
        **(extra or {}),
    }
    tensors = family.tensors(config, source)
    layout = GgufLayout.of(fields, [(w.name, w.shape, "F32") for w in tensors])
    out.touch()
    with writing_gguf(out, layout) as writer:
        for weight in tensors:
            count = weight.shape[0]
            # Two uneven pieces: nothing may depend on where a tensor is cut.
            cut = min(count, 5)
            rows = [weight.rows(0, cut), weight.rows(cut, count)]
            if len(weight.shape) == 1:
                writer.put(weight.name, 0, np.concatenate(rows).astype("<f4").view(np.uint8))
                continue
            for start, part in zip((0, cut), rows, strict=True):
                if not len(part):
                    continue
                writer.put(weight.name, start, np.ascontiguousarray(part, "<f4").view(np.uint8))
    return out


def sentence_transformer(
    folder: Path, pooling: str, *, transformer: str = "", dense: bool = False
) -> None:
    """The files that make a folder one of sentence-transformers."""
    parts = {"Transformer": transformer, "Pooling": "1_Pooling", "Dense": "2_Dense"}
    if not dense:
        del parts["Dense"]
    modules = []
    for i, (kind, path) in enumerate(parts.items()):
        (folder / path).mkdir(exist_ok=True)
        kind = f"sentence_transformers.models.{kind}"
        modules.append({"idx": i, "name": str(i), "path": path, "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))


def logits(
    path: Path, tokens: Sequence[int], vocabulary: int, *, n_ctx: int = 256
) -> NDArray[np.float32]:
    """llama.cpp's logits after every token: ``[tokens, vocabulary]``."""
    import llama_cpp

    with _context(path, len(tokens), embeddings=False, n_ctx=n_ctx) as context:
        with _batch(tokens) as batch:
            assert llama_cpp.llama_decode(context, batch) == 0
        rows = [llama_cpp.llama_get_logits_ith(context, i) for i in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, (vocabulary,)).copy() for row in rows])


def embedding(path: Path, tokens: Sequence[int], width: int) -> NDArray[np.float32]:
    """llama.cpp's pooled embedding of one sequence."""
    import llama_cpp

    with _context(path, len(tokens), embeddings=True, n_ctx=256) as context:
        with _batch(tokens) as batch:
            assert llama_cpp.llama_encode(context, batch) == 0
        found = llama_cpp.llama_get_embeddings_seq(context, 0)
        return np.ctypeslib.as_array(found, (width,)).copy()


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _no_log(level: int, text: bytes, data: object) -> None:
    pass


@contextmanager
def _context(path: Path, tokens: int, *, embeddings: bool, n_ctx: int) -> Iterator[Any]:
    import llama_cpp

    llama_cpp.llama_log_set(_no_log, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    assert model, f"llama.cpp does not load {path}"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = n_ctx
    settings.n_batch = settings.n_ubatch = max(64, tokens)
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = 0
    settings.embeddings = embeddings
    context = llama_cpp.llama_init_from_model(model, settings)
    assert context
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


@contextmanager
def _batch(tokens: Sequence[int]) -> Iterator[Any]:
    """Every token of one sequence, all of them with an output."""
    import llama_cpp

    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i] = token, i
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.logits[i] = 1
    try:
        yield batch
    finally:
        llama_cpp.llama_batch_free(batch)
