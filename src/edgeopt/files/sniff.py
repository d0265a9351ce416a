"""What is this file? Told from its content: suffixes lie.

:data:`FORMATS` is the table of what edgeopt opens, one row a format; adding a format is adding a
row and a module with ``matches(path, head) -> bool`` and ``describe(path) -> Source``. The module
is imported only when a file may be of its format. :data:`FOREIGN` is what people hand over
instead, with what to do about it.
"""

from __future__ import annotations

import codecs
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from edgeopt.core import Source
from edgeopt.files.reading import open_regular, reading

__all__ = [
    "FOREIGN",
    "FORMATS",
    "SUPPORTED",
    "Foreign",
    "Format",
    "FormatModule",
    "foreign",
    "recognise",
]


class FormatModule(Protocol):
    """What a format's module gives."""

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file may be of this format, judged from at most a few small reads."""
        ...

    def describe(self, path: Path) -> Source:
        """Describe every tensor without reading any; FormatError where the format is broken."""
        ...


@dataclass(frozen=True)
class Format:
    """One format that edgeopt opens. ``starts``: first bytes to ask the module about (any: ())."""

    name: str
    module: str
    starts: tuple[bytes, ...] = ()
    folder: bool = False

    def load(self) -> FormatModule:
        return cast(FormatModule, importlib.import_module(self.module))


#: Strict magics first; what can only be recognised by its structure last.
FORMATS: tuple[Format, ...] = (
    Format("Hugging Face folder", "edgeopt.files.hf_folder", folder=True),
    Format("GGUF", "edgeopt.files.gguf", starts=(b"GGUF",)),
    Format("torch (zip)", "edgeopt.files.torch_zip", starts=(b"PK",)),
    Format("safetensors", "edgeopt.files.safetensors"),
    Format("ONNX", "edgeopt.files.onnx"),
    Format("torch (legacy)", "edgeopt.files.torch_legacy"),
)

SUPPORTED = "torch files (.pt, .pth, .bin, .pt2), safetensors, ONNX, GGUF and Hugging Face folders"


def recognise(path: Path, head: bytes, *, folder: bool = False) -> FormatModule | None:
    """The first format of the table that claims the file (or folder), or None."""
    for row in FORMATS:
        if row.folder != folder or (row.starts and not head.startswith(row.starts)):
            continue
        module = row.load()
        if module.matches(path, head):
            return module
    return None


# ---------------------------------------------------------------------------------------------
# what people hand over instead


@dataclass(frozen=True)
class Foreign:
    """Content that is no model edgeopt opens: how to know it, what it is, what to do."""

    what: str
    remedy: str
    starts: tuple[bytes, ...] = ()
    at: int = 0
    test: Callable[[Path, bytes], bool] | None = None

    def claims(self, path: Path, head: bytes) -> bool:
        if self.starts and not head[self.at :].startswith(self.starts):
            return False
        return self.test is None or self.test(path, head)


def _zip_holds(*names: bytes) -> Callable[[Path, bytes], bool]:
    """Whether a zip archive names such members. Its directory comes last, so the file's end tells,
    and no directory of a stranger's making is parsed.
    """

    def test(path: Path, head: bytes) -> bool:
        with open_regular(path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _ZIP_TAIL))
            tail = stream.read(_ZIP_TAIL)
        return any(name in tail for name in names)

    return test


def _named(*ends: str) -> Callable[[Path, bytes], bool]:
    return lambda path, head: path.name.endswith(ends)


def _is_coreml(path: Path, head: bytes) -> bool:
    """CoreML's Model message: specificationVersion (1), description (2), and a type (200 on)."""
    from edgeopt.files.protobuf import top_level

    found = {number for number, _ in top_level(path)[0]}
    return 1 in found and 2 in found and any(200 <= number <= 3001 for number in found)


def _is_web_page(path: Path, head: bytes) -> bool:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower()
    return start.startswith((b"<!doctype html", b"<html"))


def _is_json(path: Path, head: bytes) -> bool:
    return head.lstrip()[:1] in (b"{", b"[")


def _is_text(path: Path, head: bytes) -> bool:
    try:
        # Not final: a character cut by the end of the head is no reason to think otherwise.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return not any(ord(c) < 32 and c not in "\t\r\n\f\x1b" for c in text)


_ZIP_TAIL = 1 << 16
_UNPACK = "unpack it and give the model file inside"
_TO_ONNX = "convert it to ONNX first"

FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        "a git-lfs pointer, not the model itself",
        "fetch the real file with `git lfs pull`",
        (b"version https://git-lfs.github.com/", b"version https://hawser.github.com/"),
    ),
    Foreign(
        "a web page, not a model: the download went wrong",
        "download it again; on Hugging Face use the link with /resolve/, not /blob/",
        test=_is_web_page,
    ),
    Foreign("a Keras HDF5 file", f"{_TO_ONNX} with tf2onnx", (b"\x89HDF\r\n\x1a\n",)),
    Foreign("a TensorFlow Lite file", f"{_TO_ONNX} with tf2onnx --tflite", (b"TFL3",), at=4),
    Foreign("an ONNX Runtime .ort file", "give the .onnx file it was made from", (b"ORTM",), at=4),
    Foreign("an ExecuTorch program", "give the model it was made from", (b"ET1",), at=4),
    Foreign(
        "a Keras archive",
        f"{_TO_ONNX} with tf2onnx or keras' own export",
        (b"PK",),
        test=_zip_holds(b"model.weights.h5", b"keras_metadata.pb"),
    ),
    Foreign(
        "a numpy archive of arrays",
        "save the weights as safetensors, or give it as --data if it holds inputs",
        (b"PK",),
        test=_zip_holds(b".npyPK"),
    ),
    Foreign("a zip archive", _UNPACK, (b"PK\x03\x04", b"PK\x05\x06")),
    Foreign(
        "a numpy array",
        "save the weights as safetensors, or give it as --data if it holds inputs",
        (b"\x93NUMPY",),
    ),
    Foreign("a gzip archive", _UNPACK, (b"\x1f\x8b",)),
    Foreign("a bzip2 archive", _UNPACK, (b"BZh",)),
    Foreign("an xz archive", _UNPACK, (b"\xfd7zXZ\x00",)),
    Foreign("a zstd archive", _UNPACK, (b"\x28\xb5\x2f\xfd",)),
    Foreign("a 7-zip archive", _UNPACK, (b"7z\xbc\xaf\x27\x1c",)),
    Foreign("a RAR archive", _UNPACK, (b"Rar!\x1a\x07",)),
    Foreign("a tar archive", _UNPACK, (b"ustar",), at=257),
    Foreign(
        "a GGML file from before GGUF",
        "convert it with llama.cpp's convert_llama_ggml_to_gguf.py",
        (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggmf", b"ggjt"),
    ),
    Foreign("an OpenVINO description", "give the model it was made from", (b"<?xml", b"<net ")),
    Foreign("a Parquet table", "give a model file", (b"PAR1",)),
    Foreign("a compiled program or engine", "give the model it was made from", (b"\x7fELF", b"MZ")),
    Foreign(
        "a TensorFlow graph",
        f"{_TO_ONNX} with tf2onnx --saved-model FOLDER",
        test=_named("saved_model.pb", ".pb"),
    ),
    Foreign("a CoreML model", "give the model it was made from", (b"\x08",), test=_is_coreml),
    Foreign(
        "an index of shards",
        "give the folder that holds it",
        test=lambda path, head: path.name.endswith(".index.json") and _is_json(path, head),
    ),
    Foreign(
        "a model's configuration, not its weights",
        "give the folder that holds it",
        test=lambda path, head: (
            path.name in ("config.json", "modules.json", "tokenizer.json") and _is_json(path, head)
        ),
    ),
    Foreign("a JSON document", "give a model file", test=_is_json),
    Foreign("a text file", "give a model file", test=_is_text),
)


def foreign(path: Path, head: bytes) -> Foreign | None:
    """The row of :data:`FOREIGN` that knows this content, or None."""
    with reading(path):
        return next((row for row in FOREIGN if row.claims(path, head)), None)
