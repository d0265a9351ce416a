"""The inputs of llama.cpp's own matrix products, caught while it computes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests import ggml_oracle
from tests.llm.gguf_of import _batch, _no_log

F32 = 0


class Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of the installed version, up to its name."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def square_means(
    path: Path, chunks: Sequence[Sequence[int]], *, encoder: bool = False
) -> dict[str, NDArray[np.float64]]:
    """Mean squares of the input columns of every product in the blocks, by weight."""
    import llama_cpp

    base = ggml_oracle.library()
    base.ggml_op_name.restype = ctypes.c_char_p
    sums: dict[str, NDArray[np.float64]] = {}
    rows: dict[str, int] = {}

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Tensor), ctypes.c_bool, ctypes.c_void_p)
    def watch(tensor: ctypes._Pointer[Tensor], ask: bool, data: object) -> bool:
        del data
        node = tensor.contents
        if base.ggml_op_name(node.op) != b"MUL_MAT":
            return not ask
        name, inputs = node.src[0].contents.name.decode(), node.src[1].contents
        if not name.startswith("blk.") or inputs.type != F32:
            return not ask
        if not ask:
            columns, count = inputs.ne[0], inputs.ne[1]
            assert inputs.nb[1] == 4 * columns
            pointer = ctypes.cast(inputs.data, ctypes.POINTER(ctypes.c_float))
            values = np.ctypeslib.as_array(pointer, (count, columns)).astype(np.float64)
            sums[name] = sums.get(name, 0.0) + (values**2).sum(0)
            rows[name] = rows.get(name, 0) + count
        return True

    llama_cpp.llama_log_set(_no_log, None)
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    assert model
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = 0
    settings.embeddings = encoder
    settings.cb_eval = ctypes.cast(watch, type(settings.cb_eval))
    context = llama_cpp.llama_init_from_model(model, settings)
    assert context
    step = llama_cpp.llama_encode if encoder else llama_cpp.llama_decode
    for tokens in chunks:
        if not encoder:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        with _batch(tokens) as batch:
            assert step(context, batch) == 0
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return {name: total / rows[name] for name, total in sums.items()}
