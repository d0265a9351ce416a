"""What a tensor is there for, told from its name and dtype."""

from __future__ import annotations

__all__ = ["BUFFER_NAMES", "role_of"]

#: Last parts of the names that torch and transformers give to tensors that nobody trains.
BUFFER_NAMES = frozenset(
    {
        "anchors",
        "attn_mask",
        "cos_cached",
        "inv_freq",
        "masked_bias",
        "num_batches_tracked",
        "position_ids",
        "relative_coords_table",
        "relative_position_index",
        "rope_freqs",
        "running_mean",
        "running_var",
        "sin_cached",
        "token_type_ids",
    }
)

_INTEGERS = ("int", "uint", "bool")


def role_of(name: str, dtype: str) -> str:
    """``buffer`` for running statistics, position ids and every integer tensor, else ``weight``."""
    last = name.removesuffix(".weight").rpartition(".")[2]
    if last in BUFFER_NAMES or dtype.startswith(_INTEGERS):
        return "buffer"
    return "weight"
