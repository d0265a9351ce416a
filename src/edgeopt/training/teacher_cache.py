"""The teacher's answers on disk, computed once and mapped: for teachers that are the slow part.

A folder that the user names holds one folder for each (teacher, data, layers), by their
fingerprint. In it is an ``.npy`` file for each output and hidden layer, one row a sample, and
``answers.json``, written last: without it the folder was never finished, and is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.core import Array
from edgeopt.errors import OutputError, SourceError, UsageError
from edgeopt.files.atomic import writing
from edgeopt.modules.model import TorchModel
from edgeopt.training.batches import ArrayData, Data, MicroBatch
from edgeopt.training.objective import Answers
from edgeopt.training.teacher import Autocast, LiveTeacher

__all__ = ["CachedTeacher", "cached_answers", "weights_digest"]

_INDEX = "answers.json"

#: Rows run at once while answers are computed. Fixed, so that they do not depend on training.
_ROWS = 64


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of a module's state: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            digest.update(f"{name}\0{tensor!r}\n".encode())
            continue
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class CachedTeacher:
    """Reads answers by the places of their rows. ``hidden`` and ``outputs`` are mapped arrays."""

    outputs: Mapping[str, Array]
    hidden: Mapping[str, Array]

    def answers(self, part: MicroBatch, feed: Mapping[str, Tensor]) -> Answers:
        device = next((t.device for t in feed.values()), torch.device("cpu"))

        def taken(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
            rows = {name: np.array(array[part.rows]) for name, array in arrays.items()}
            return {name: torch.from_numpy(array).to(device) for name, array in rows.items()}

        return taken(self.outputs), taken(self.hidden)

    @classmethod
    def open(cls, folder: Path, data: Data) -> CachedTeacher:
        """Raises SourceError where the folder is not there, or its files are not what it says."""
        rows = data.count(1)
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            found = {
                side: {name: _mapped(folder / file, rows) for name, file in index[side].items()}
                for side in ("outputs", "hidden")
            }
        except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise SourceError(
                f"{folder}: no usable answers ({str(error)[:120]}); remove the folder"
            ) from error
        return cls(found["outputs"], found["hidden"])


def _mapped(path: Path, rows: int | None) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(array) != rows:
        raise ValueError(f"{path.name} has {len(array)} rows for {rows} samples")
    return array


def cached_answers(
    folder: Path,
    model: TorchModel,
    data: Data,
    layers: Sequence[str],
    autocast: Autocast,
    tensors: Callable[[MicroBatch], Mapping[str, Tensor]],
    progress: Callable[[str, float | None], None],
) -> Path:
    """The folder with the teacher's answers to ``data``, which are computed if they are not there.

    ``tensors`` makes a feed of a part. Raises UsageError for data without rows and for an answer
    that is not one row a sample, OutputError where nothing can be written.
    """
    if not isinstance(data, ArrayData):
        raise UsageError(
            f"{data.label}: answers are cached by sample, and a stream has none; give arrays"
        )
    key = hashlib.sha256()
    for text in (weights_digest(model.module), data.fingerprint(), *layers):
        key.update(f"{text}\n".encode())
    target = folder / f"teacher-{key.hexdigest()[:24]}"
    if (target / _INDEX).is_file():
        return target
    try:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        with LiveTeacher.opened(model, layers, autocast) as teacher, _files(target) as put:
            batches = data.count(_ROWS)
            for number, (part,) in enumerate(data.parts(_ROWS, 1, (0,), None, 0)):
                progress(f"the teacher answers, {number}/{batches}", number / batches)
                outputs, hidden = teacher.answers(part, tensors(part))
                put("outputs", outputs, part, len(data))
                put("hidden", hidden, part, len(data))
            index = put.index
        with writing(target / _INDEX) as temporary:
            temporary.write_text(json.dumps(index, sort_keys=True), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{target}: {error.strerror or error}; give another folder") from error
    return target


class _Put:
    """Appends rows to one file an answer, whose shape the first rows give."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.index: dict[str, dict[str, str]] = {"outputs": {}, "hidden": {}}
        self.open: dict[tuple[str, str], tuple[BufferedWriter, tuple[int, ...]]] = {}

    def __call__(
        self, side: str, answers: Mapping[str, Tensor], part: MicroBatch, rows: int
    ) -> None:
        assert part.rows is not None
        for name, tensor in answers.items():
            array = tensor.cpu().numpy()
            if not array.ndim or len(array) != len(part.rows):
                raise UsageError(
                    f"the teacher's {name} is {list(array.shape)} for {len(part.rows)} samples, "
                    "and not one row each; train without a cache"
                )
            stream, shape = self.open.get((side, name)) or self._begin(side, name, array, rows)
            if array.shape[1:] != shape:
                raise UsageError(
                    f"the teacher's {name} changes its shape from sample to sample "
                    f"({list(shape)}, {list(array.shape[1:])}); train without a cache"
                )
            stream.write(np.ascontiguousarray(array).data)

    def _begin(
        self, side: str, name: str, array: Array, rows: int
    ) -> tuple[BufferedWriter, tuple[int, ...]]:
        file = f"{side}-{len(self.index[side])}.npy"
        self.index[side][name] = file
        stream = self.stack.enter_context((self.folder / file).open("wb"))
        header: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(array.dtype),
            "fortran_order": False,
            "shape": (rows, *array.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(stream, header)
        self.open[side, name] = (stream, array.shape[1:])
        return self.open[side, name]


@contextmanager
def _files(folder: Path) -> Iterator[_Put]:
    """Files that are on the disk when the block is left."""
    with ExitStack() as stack:
        put = _Put(folder, stack)
        yield put
        for stream, _ in put.open.values():
            stream.flush()
            os.fsync(stream.fileno())
