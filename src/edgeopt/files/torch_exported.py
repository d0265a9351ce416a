"""Exported programs (``torch.export.save``, ``.pt2``), described from their JSON alone.

Two layouts. Since torch 2.8 the archive says ``pt2`` in ``NAME/archive_format``; each weight is a
raw record ``NAME/data/weights/weight_0`` that ``model_weights_config.json`` describes, and the
program is ``NAME/models/model.json``. Until 2.7 a plain zip held
``serialized_exported_program.json`` beside ``serialized_state_dict.pt``, a torch file of its own,
which is mapped in place too. Schema: ``torch/_export/serde/schema.py``.

Whether a program may be loaded without trusting its author: :mod:`edgeopt.files.torch_plain`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from edgeopt.core import DTYPE_BITS, InputSpec, Source, Storage, Weight, tensor_nbytes
from edgeopt.errors import FormatError, SourceError
from edgeopt.files.mapped import Stretch, StridedReader
from edgeopt.files.reading import FileBytes
from edgeopt.files.text import one_line
from edgeopt.files.torch_plain import Plain, examine, named
from edgeopt.files.torch_program import NotPlainError
from edgeopt.files.torch_source import TensorMaker, weight_role
from edgeopt.files.torch_tree import read_tree
from edgeopt.files.zip_records import STORED, ZipRecords

__all__ = ["describe", "examined", "is_exported"]

OLD_PROGRAM = "serialized_exported_program.json"

#: ``schema.ScalarType`` by numpy's names.
SCALAR_TYPES: Mapping[int, str] = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}

_OLD = "it is of torch 2.7 or before, whose weights are pickled"

#: What torch would do with a program that is not known to be harmless.
_TRUST = "torch.export.load would unpickle what it carries and evaluate its strings"

#: A JSON record may be this large, in bytes, and its objects take this much memory (estimated):
#: more in a file that is large itself. A program takes about 0.1 MB a layer.
MAX_JSON, MAX_OBJECTS = 20_000_000, 50_000_000


class _ProgramArchive(Protocol):
    foreign: set[str]

    def pickle(self, name: str = ..., folder: str = ...) -> tuple[Any, TensorMaker]: ...


#: Opens the torch archive between two positions of a file, under a label.
OpenArchive = Callable[[FileBytes, int, int, str], _ProgramArchive]


def is_exported(records: ZipRecords) -> bool:
    """Whether a torch archive holds an exported program, in either layout."""
    return OLD_PROGRAM in records.records or _root(records) is not None


def _root(records: ZipRecords) -> str | None:
    name = next(
        (n for n in records.records if n.endswith("/archive_format") and n.count("/") == 1), None
    )
    return name[: -len("archive_format")] if name else None


def describe(path: Path, file: FileBytes, records: ZipRecords, open_archive: OpenArchive) -> Source:
    """Describe an exported program. Raises FormatError where the file is damaged."""
    reader = _RecordReader(path, file, records, open_archive)
    root = _root(records)
    weights = reader.old_weights() if root is None else reader.weights(root)
    program = OLD_PROGRAM if root is None else reader.program_name(root)
    document = reader.json(program)
    inputs, parameters = reader.inputs(document, program)
    found, trust = _examination(reader, root, document)
    if found is not None:
        inputs = named(inputs, found.extra)
    weights = [
        Weight(
            w.name, w.shape, w.dtype, w.nbytes, w.reader, parameters.get(w.name, w.role), w.storage
        )
        for w in weights
    ]
    if not weights:
        raise SourceError(f"{path}: an exported program without weights; nothing to work on")
    storages = {w.storage.key: w.storage.nbytes for w in weights if w.storage}
    details = {
        "container": "torch-export" if root is None else "torch-pt2",
        "archive": "" if root is None else root.rstrip("/"),
        "compression": "stored",
        "byteorder": "big" if reader.big_endian else "little",
        "torch_version": str(document.get("torch_version", ""))[:40],
        "overhead_bytes": max(0, file.size - sum(storages.values())),
        "foreign_globals": tuple(one_line(name) for name in sorted(reader.foreign)[:50]),
    }
    return Source(
        path=path,
        kind="torch-exported",
        files=(path,),
        nbytes=file.size,
        weights=tuple(weights),
        inputs=inputs,
        needs_trust=trust,
        details={key: value for key, value in details.items() if value not in ("", ())},
    )


def examined(path: Path, file: FileBytes, records: ZipRecords, open_archive: OpenArchive) -> Plain:
    """The program's checked parts. Raises NotPlainError where one could run code."""
    reader = _RecordReader(path, file, records, open_archive)
    root = _root(records)
    if root is None:
        raise NotPlainError(_OLD)
    return _examined(reader, root, reader.json(reader.program_name(root)))


def _examined(reader: _RecordReader, root: str, document: dict[str, Any]) -> Plain:
    return examine(reader.records, root, document, reader.json, reader.open_archive)


def _examination(
    reader: _RecordReader, root: str | None, document: dict[str, Any]
) -> tuple[Plain | None, str | None]:
    """The parts of a program that can only compute, or what is in the way."""
    if root is None:
        return None, f"{_OLD}; {_TRUST}"
    try:
        return _examined(reader, root, document), None
    except NotPlainError as error:
        return None, f"not a plain exported program: {error}; {_TRUST}"


class _RecordReader:
    def __init__(
        self, path: Path, file: FileBytes, records: ZipRecords, open_archive: OpenArchive
    ) -> None:
        self.path, self.file, self.records = path, file, records
        self.open_archive = open_archive
        self.foreign: set[str] = set()
        self.big_endian = False

    def fail(self, problem: str, name: str) -> FormatError:
        return FormatError(self.path, one_line(problem), field=one_line(f"member {name}"))

    # ------------------------------------------------------------------------------ weights

    def weights(self, root: str) -> list[Weight]:
        """The tensors of every ``*_weights_config.json`` and ``*_constants_config.json``."""
        order = f"{root}byteorder"
        if order in self.records.records:
            self.big_endian = self.records.data(order, 16) == b"big"
        made: dict[str, Weight] = {}
        for kind in ("weights", "constants"):
            folder = f"{root}data/{kind}/"
            names = [n for n in self.records.records if n.startswith(folder)]
            for name in names:
                if name.endswith(f"_{kind}_config.json"):
                    for weight in self._configured(name, folder, kind):
                        made.setdefault(weight.name, weight)
                elif name.endswith(".pt"):
                    for weight in self._nested(name):
                        made.setdefault(weight.name, weight)
        return list(made.values())

    def _configured(self, name: str, folder: str, kind: str) -> list[Weight]:
        config = self.json(name).get("config")
        if not isinstance(config, dict):
            raise self.fail("no config in it", name)
        made: list[Weight] = []
        for tensor, meta in config.items():
            record = meta.get("path_name") if isinstance(meta, dict) else None
            if not isinstance(record, str) or folder + record not in self.records.records:
                raise self.fail(f"the record of {tensor[:100]} is missing", name)
            if meta.get("use_pickle"):
                if not record.startswith(("custom_obj", "opaque_obj")):
                    made += self._nested(folder + record, tensor)
            else:
                is_param = meta.get("is_param") is True
                made.append(self._raw(tensor, folder + record, meta.get("tensor_meta"), is_param))
        return made

    def _raw(self, tensor: str, name: str, meta: Any, parameter: bool) -> Weight:
        record = self.records.records[name]
        if record.method != STORED:
            raise self.fail("a compressed weight, which cannot be mapped", name)
        dtype = _scalar_type(meta)
        if dtype is None:
            raise self.fail(f"the dtype of {tensor[:100]} is unknown", name)
        shape = self._ints(_at(meta, "sizes"), name)
        stride = self._ints(_at(meta, "strides"), name)
        offset = self._ints([_at(meta, "storage_offset")], name)[0]
        if len(shape) != len(stride) or len(shape) > 32:
            raise self.fail(f"the strides of {tensor[:100]} do not fit its shape", name)
        stretch = Stretch(self.file, name.partition("/")[2], record.start, record.nbytes)
        reader = StridedReader(
            stretch, tensor, dtype, offset, shape, stride, big_endian=self.big_endian
        )
        storage = Storage(stretch.key, offset * DTYPE_BITS[dtype] // 8, record.nbytes)
        role = weight_role(tensor, dtype, buffer=not parameter)
        return Weight(tensor, shape, dtype, tensor_nbytes(shape, dtype), reader, role, storage)

    def _ints(self, values: Any, name: str) -> tuple[int, ...]:
        numbers: list[int] = []
        for value in values if isinstance(values, list) else (None,):
            number = _at(value, "as_int")
            if type(number) is not int or not 0 <= number < 2**63:
                raise self.fail("a weight whose shape is no list of sizes", name)
            numbers.append(number)
        return tuple(numbers)

    def _nested(self, name: str, rename: str | None = None) -> list[Weight]:
        """The tensors of a torch file that is a record of this one."""
        record = self.records.records[name]
        if record.method != STORED:
            raise self.fail("a compressed torch file, whose tensors cannot be mapped", name)
        if not record.nbytes:
            return []
        archive = self.open_archive(self.file, record.start, record.start + record.packed, name)
        top, maker = archive.pickle()
        self.foreign |= archive.foreign
        tree = read_tree(self.path, self.file.size, top)
        # A state dict of its own: nothing in it is an optimizer's or a copy.
        leaves = [(tree.prefix + (rename or key), leaf) for key, leaf in tree.model]
        leaves += [(key, leaf) for key, _, leaf in tree.extras]
        return [weight for key, leaf in leaves if (weight := maker.make(key, "", leaf))]

    def old_weights(self) -> list[Weight]:
        made: dict[str, Weight] = {}
        for name in ("serialized_state_dict.pt", "serialized_constants.pt"):
            if name in self.records.records:
                for weight in self._nested(name):
                    made.setdefault(weight.name, weight)
        if "serialized_state_dict.pt" not in self.records.records:
            raise self.fail(
                "the archive has none; save it again with torch 2.2 or later",
                "serialized_state_dict.pt",
            )
        return list(made.values())

    # ------------------------------------------------------------------------------ program

    def program_name(self, root: str) -> str:
        names = [
            n
            for n in self.records.records
            if n.startswith(f"{root}models/") and n.endswith(".json")
        ]
        if not names:
            raise self.fail("no program in the archive", f"{root}models/")
        preferred = f"{root}models/model.json"
        return preferred if preferred in names else names[0]

    def json(self, name: str) -> dict[str, Any]:
        raw = self.records.data(name, MAX_JSON)
        values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
        limit = MAX_OBJECTS + self.file.size // 20
        if 70 * values + 100 * raw.count(b":") > limit:
            raise self.fail(f"JSON that would take more than {limit} bytes of memory", name)
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise self.fail(f"no sound JSON: {error}", name) from error
        if not isinstance(document, dict):
            raise self.fail("no JSON object", name)
        return document

    def inputs(
        self, document: dict[str, Any], name: str
    ) -> tuple[tuple[InputSpec, ...], dict[str, str]]:
        """What the program takes from its user, and the roles of its tensors."""
        specs = _at(document, "graph_module", "signature", "input_specs")
        values = _at(document, "graph_module", "graph", "tensor_values")
        if not isinstance(specs, list) or not isinstance(values, dict):
            raise self.fail("no graph signature", name)
        found: list[InputSpec] = []
        roles: dict[str, str] = {}
        for spec in specs:
            tensor = _at(spec, "user_input", "arg", "as_tensor", "name")
            if isinstance(tensor, str):
                found.append(self._input(tensor, values.get(tensor), name))
            for key, field, role in _ROLES:
                target = _at(spec, key, field)
                if isinstance(target, str):
                    roles[target] = role
        return tuple(found), roles

    def _input(self, tensor: str, meta: Any, name: str) -> InputSpec:
        dtype = _scalar_type(meta)
        sizes = _at(meta, "sizes")
        if dtype is None or not isinstance(sizes, list) or len(sizes) > 64:
            raise self.fail(f"input {tensor[:100]} has no dtype or shape", name)
        return InputSpec(tensor[:200], dtype, tuple(self._dim(size, name) for size in sizes))

    def _dim(self, size: Any, name: str) -> int | str:
        fixed, text = _at(size, "as_int"), _at(size, "as_expr", "expr_str")
        if type(fixed) is int and 0 <= fixed < 2**63:
            return fixed
        if not isinstance(text, str) or not text:
            raise self.fail("an input dimension that is neither number nor symbol", name)
        # Only read, never evaluated: "Symbol('s0', integer=True)" -> "s0".
        return _SYMBOL.sub(r"\1", text[:2000])[:64]


_SYMBOL = re.compile(r"Symbol\('([^']{1,60})'[^()]{0,200}\)")

_ROLES = (
    ("parameter", "parameter_name", "weight"),
    ("buffer", "buffer_name", "buffer"),
    ("tensor_constant", "tensor_constant_name", "buffer"),
)


def _at(value: Any, *keys: str) -> Any:
    """The value under nested keys, None where one is missing."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _scalar_type(meta: Any) -> str | None:
    code = _at(meta, "dtype")
    return SCALAR_TYPES.get(code) if isinstance(code, int) else None
