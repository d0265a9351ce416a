"""A module's state dict as a safetensors file, tied weights stored once and named in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeopt.errors import FormatError

__all__ = ["read_state", "write_state"]

#: The entry of the file's metadata that says which tensor stands for which.
_TIED = "edgeopt_tied"


def write_state(module: nn.Module, path: Path) -> None:
    """Write ``module.state_dict()``. Tensors that share all their numbers are stored under the
    first of their names; the metadata says what other names they have."""
    from safetensors.torch import save_file

    stored: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in module.state_dict().items():
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in first:
            tied[name] = first[key]
            continue
        first[key] = name
        # A view of another tensor, or a transposed one, is stored as its own numbers.
        stored[name] = tensor.detach().cpu().clone().contiguous()
    # One entry alone: the library writes several in no certain order.
    save_file(stored, path, {_TIED: json.dumps(tied, sort_keys=True)})
    # The library lets nobody else read what it writes.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict that :func:`write_state` wrote, every name in it. Tied names share one tensor.

    Raises FormatError for a file that is damaged or names a tensor it does not have.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = json.loads((file.metadata() or {}).get(_TIED, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise FormatError(path, f"cannot be read as safetensors: {error}") from None
    for name, other in tied.items() if isinstance(tied, dict) else ():
        if other not in state:
            raise FormatError(path, f"{name} is said to be {other}, which is missing")
        state[name] = state[other]
    return state
