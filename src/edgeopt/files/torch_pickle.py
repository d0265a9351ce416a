"""A pickle reader that runs nothing: a stack machine over bytes, for the pickles torch writes.

Python's own unpickler imports and calls whatever a file names. This one knows the opcodes of
protocols 0 to 5 (PEP 3154, PEP 574, ``pickletools``) and builds plain data only. A global becomes
a :class:`Global`, which is a name; calling one asks the ``build`` function that the caller hands
in, and what that does not know becomes an :class:`Opaque`: the name, the arguments and the state,
never called. So a pickled ``nn.Module`` can be walked without its class.

Everything is bounded: lengths by the bytes left before anything is allocated, work and memory by
:class:`Limits`. Nothing recurses, and nothing from the file is hashed but strings, bytes and
small numbers, so neither deep nesting nor chosen collisions can hurt.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from edgeopt.errors import FormatError
from edgeopt.files.pickle_nodes import BadObject, Global, Opaque, StoredBytes
from edgeopt.files.reading import Buffer
from edgeopt.files.text import one_line

__all__ = ["Limits", "read_pickle"]

#: Strings and bytes longer than this stay where they are in the file, as a :class:`StoredBytes`.
BLOB = 4096
#: Longest text line (protocol 0) and longest integer, in bytes.
MAX_LINE, MAX_INT = 4096, 1024


@dataclass(frozen=True)
class Limits:
    """What one pickle may cost: opcodes, and bytes of the objects it builds (estimated).

    A tensor takes some 25 opcodes and 700 bytes. What a file of any size may have is spent in
    about a second; a large file, which may well hold more tensors, gets more by its size.
    """

    opcodes: int = 1_000_000
    memory: int = 36_000_000

    @classmethod
    def for_file(cls, nbytes: int) -> Limits:
        return cls(cls.opcodes + nbytes // 200, cls.memory + nbytes // 100)


Build: TypeAlias = "Callable[[str, tuple[Any, ...]], Any]"


def read_pickle(
    buffer: Buffer,
    start: int,
    end: int,
    *,
    path: Path,
    field: str,
    build: Build,
    persistent: Callable[[Any], Any],
    limits: Limits,
) -> tuple[Any, int, set[str]]:
    """Read one pickle from ``buffer[start:end]``.

    ``build(name, args)`` gives the object that calling ``name`` would give, or NotImplemented;
    ``persistent(pid)`` the object behind a persistent id. Both may raise :class:`BadObject`.

    Returns the object, the position after it, and the names that became :class:`Opaque`.
    Raises FormatError, naming the byte.
    """
    machine = _Machine(buffer, start, end, path, field, build, persistent, limits)
    return machine.run(), machine.pos, machine.foreign


class _Key:
    """A dict key that is better not hashed; equal to nothing but itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Machine:
    def __init__(
        self,
        buffer: Buffer,
        start: int,
        end: int,
        path: Path,
        field: str,
        build: Build,
        persistent: Callable[[Any], Any],
        limits: Limits,
    ) -> None:
        self.buffer, self.pos, self.end = buffer, start, end
        self.path, self.field = path, field
        self.build, self.persistent, self.limits = build, persistent, limits
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.scattered: dict[int, Any] = {}
        self.globals: dict[str, Global] = {}
        self.foreign: set[str] = set()
        self.cost = 0

    def run(self) -> Any:
        buffer, end, opcodes = self.buffer, self.end, self.limits.opcodes
        memory, table = self.limits.memory, _OPCODES
        at, left = self.pos, opcodes
        try:
            while True:
                at = self.pos
                left -= 1
                if left < 0:
                    self.fail(f"more than {opcodes} opcodes, the limit for a file of this size")
                if at >= end:
                    self.fail("truncated: ends before its STOP opcode")
                self.pos = at + 1
                opcode = buffer[at]
                if opcode == 0x2E:
                    return self.pop()
                handler = table[opcode]
                if handler is None:
                    self.fail(f"unknown opcode 0x{opcode:02x}")
                handler(self)
                if self.cost > memory:
                    self.fail(f"needs more than {memory} bytes of memory, the limit for this file")
        except (BadObject, UnicodeDecodeError) as error:
            problem = one_line(str(error))
            raise FormatError(self.path, problem, field=self.field, offset=at) from error

    def fail(self, problem: str) -> NoReturn:
        raise FormatError(self.path, one_line(problem), field=self.field, offset=self.pos)

    # ------------------------------------------------------------------------- reading bytes

    def take(self, count: int) -> int:
        """Step over ``count`` bytes and return where they begin."""
        at = self.pos
        if count > self.end - at:
            self.fail(f"a length of {count} bytes, {self.end - at} are left")
        self.pos = at + count
        return at

    def number(self, form: struct.Struct) -> Any:
        return form.unpack_from(self.buffer, self.take(form.size))[0]

    def line(self) -> bytes:
        stop = self.buffer.find(b"\n", self.pos, min(self.end, self.pos + MAX_LINE))
        if stop < 0:
            self.fail(f"no end of line within {MAX_LINE} bytes")
        raw = bytes(self.buffer[self.pos : stop])
        self.pos = stop + 1
        return raw

    def integer(self, raw: bytes) -> int:
        try:
            return int(raw[:MAX_INT])
        except ValueError:
            self.fail(f"{raw[:20]!r} is no integer")

    # ----------------------------------------------------------------------------- the stack

    def push(self, value: Any, cost: int = 9) -> None:
        self.stack.append(value)
        self.cost += cost

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("needs a value on an empty stack")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.marks:
            self.fail("a MARK is missing")
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def remember(self, index: int) -> None:
        # Picklers number from 0 upwards, which a list holds in a tenth of a dict's memory.
        if index == len(self.memo):
            self.memo.append(self.top())
            self.scattered.pop(index, None)
            self.cost += 9
        else:
            self.scattered[index] = self.top()
            self.cost += 110

    def recall(self, index: int) -> None:
        if index in self.scattered:
            self.push(self.scattered[index], 9)
        elif 0 <= index < len(self.memo):
            self.push(self.memo[index], 9)
        else:
            self.fail(f"memo {index} was never set")

    # ------------------------------------------------------------------------------- objects

    def text_or_bytes(self, count: int, text: bool) -> None:
        at = self.take(count)
        if count > BLOB:
            self.push(StoredBytes(self.buffer, at, self.pos, text), 100)
        else:
            raw = bytes(self.buffer[at : self.pos])
            # Twice: the object, and the file's page that was touched to make it.
            self.push(raw.decode("utf-8", "surrogatepass") if text else raw, 60 + 2 * count)

    def python2_text(self, count: int) -> None:
        """A string of Python 2: text, as torch reads it, where its bytes are UTF-8."""
        at = self.pos
        self.text_or_bytes(count, False)
        if count > BLOB:
            return
        with contextlib.suppress(UnicodeDecodeError):
            text = bytes(self.buffer[at : at + count]).decode("utf-8")
            self.stack[-1] = text

    def global_named(self, module: str, name: str) -> Global:
        full = f"{_PYTHON2.get(module, module)}.{name}"
        found = self.globals.get(full)
        if found is None:
            found = self.globals[full] = Global(full)
            self.cost += 200 + len(full)
        return found

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(args, tuple):
            self.fail("arguments that are no tuple")
        name = function.name if isinstance(function, (Global, Opaque)) else "(no function)"
        # Constructors may copy or walk what they are given.
        self.cost += 150 + 8 * len(args)
        for arg in args[:4]:
            if isinstance(arg, (list, tuple, dict)):
                self.cost += 50 * len(arg)
        made = self.build(name, args) if isinstance(function, Global) else NotImplemented
        if made is NotImplemented:
            made = Opaque(name, args)
        if isinstance(made, Opaque):
            self.foreign.add(made.name)
        return made

    def set_items(self, target: Any, values: list[Any]) -> None:
        if len(values) % 2:
            self.fail("a key without a value")
        if isinstance(target, Opaque):
            if target.items is None:
                target.items = {}
            target = target.items
        if not isinstance(target, dict):
            self.fail(f"sets items of a {type(target).__name__}")
        self.cost += 50 * len(values)
        for key, value in zip(values[::2], values[1::2], strict=True):
            plain = isinstance(key, (str, bytes)) or key is None
            if not plain and isinstance(key, (int, float)):
                plain = abs(key) < 2**53
            target[key if plain else _Key(key)] = value

    def extend(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, Opaque):
            if target.elements is None:
                target.elements = []
            target = target.elements
        if not isinstance(target, list):
            self.fail(f"appends to a {type(target).__name__}")
        self.cost += 9 * len(values)
        target.extend(values)

    # ------------------------------------------------------------------------------- opcodes

    def op_mark(self) -> None:
        self.marks.append(len(self.stack))
        self.cost += 40

    def op_pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def op_pop_mark(self) -> None:
        self.since_mark()

    def op_int(self) -> None:
        raw = self.line().strip()
        self.push({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else self.integer(raw))

    def op_long(self) -> None:
        self.push(self.integer(self.line().strip().rstrip(b"L")), 64)

    def long_of(self, count: int) -> None:
        if not 0 <= count <= MAX_INT:
            self.fail(f"an integer of {count} bytes, the limit is {MAX_INT}")
        at = self.take(count)
        self.push(int.from_bytes(self.buffer[at : self.pos], "little", signed=True), 48 + count)

    def op_float(self) -> None:
        raw = self.line()
        try:
            self.push(float(raw), 32)
        except ValueError:
            self.fail(f"{raw[:20]!r} is no number")

    def op_string(self) -> None:
        raw = self.line().strip()
        if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
            self.fail("a string without quotes")
        self.push(raw[1:-1].decode("ascii", "backslashreplace"), 60 + len(raw))

    def op_unicode(self) -> None:
        raw = self.line()
        self.push(raw.decode("raw-unicode-escape"), 60 + 4 * len(raw))

    def op_list(self) -> None:
        values = self.since_mark()
        self.push(values, 72 + 8 * len(values))

    def op_tuple(self) -> None:
        values = self.since_mark()
        self.push(tuple(values), 64 + 8 * len(values))

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)), 64 + 8 * count)

    def op_dict(self) -> None:
        values = self.since_mark()
        made: dict[Any, Any] = {}
        self.set_items(made, values)
        self.push(made, 80)

    def op_setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items(self.top(), [key, value])

    def op_setitems(self) -> None:
        values = self.since_mark()
        self.set_items(self.top(), values)

    def op_append(self) -> None:
        value = self.pop()
        self.extend(self.top(), [value])

    def op_appends(self) -> None:
        values = self.since_mark()
        self.extend(self.top(), values)

    def op_global(self) -> None:
        module, name = self.line().decode("utf-8"), self.line().decode("utf-8")
        self.push(self.global_named(module, name))

    def op_stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self.fail("a global whose name is no string")
        self.push(self.global_named(module, name))

    def op_extension(self, form: struct.Struct) -> None:
        self.push(self.global_named("copyreg", f"extension {self.number(form)}"))

    def op_reduce(self) -> None:
        args, function = self.pop(), self.pop()
        self.push(self.call(function, args))

    def op_newobj_ex(self) -> None:
        kwargs, args, cls = self.pop(), self.pop(), self.pop()
        if not isinstance(args, tuple):
            self.fail("arguments that are no tuple")
        self.push(self.call(cls, (*args, kwargs) if kwargs else args))

    def op_obj(self) -> None:
        values = self.since_mark()
        if not values:
            self.fail("an object without a class")
        self.push(self.call(values[0], tuple(values[1:])))

    def op_inst(self) -> None:
        module, name = self.line().decode("utf-8"), self.line().decode("utf-8")
        args = tuple(self.since_mark())
        self.push(self.call(self.global_named(module, name), args))

    def op_build(self) -> None:
        state, target = self.pop(), self.top()
        # Attributes of plain data (an OrderedDict's _metadata) say nothing about tensors.
        if isinstance(target, Opaque):
            target.state = state

    def op_persid(self) -> None:
        self.push(self.persistent(self.line().decode("utf-8")), 64)

    def op_binpersid(self) -> None:
        self.push(self.persistent(self.pop()), 64)

    def op_proto(self) -> None:
        version = self.number(_U1)
        if version > 5:
            self.fail(f"pickle protocol {version}, this edgeopt reads 0 to 5")

    def op_frame(self) -> None:
        length = self.number(_U8)
        if length > self.end - self.pos:
            self.fail(f"a frame of {length} bytes, {self.end - self.pos} are left")

    def op_buffer(self) -> None:
        self.fail("out-of-band buffers, which torch never writes")


_U1, _U2, _U4, _U8 = (struct.Struct(f"<{c}") for c in "BHIQ")
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")

#: Python 2's names for the modules that checkpoints refer to.
_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "exceptions": "builtins"}

_NAMED: dict[bytes, Callable[[_Machine], None]] = {
    # protocol 0
    b"(": _Machine.op_mark,
    b"0": _Machine.op_pop,
    b"1": _Machine.op_pop_mark,
    b"2": lambda m: m.push(m.top()),
    b"F": _Machine.op_float,
    b"I": _Machine.op_int,
    b"L": _Machine.op_long,
    b"N": lambda m: m.push(None),
    b"P": _Machine.op_persid,
    b"R": _Machine.op_reduce,
    b"S": _Machine.op_string,
    b"V": _Machine.op_unicode,
    b"a": _Machine.op_append,
    b"b": _Machine.op_build,
    b"c": _Machine.op_global,
    b"d": _Machine.op_dict,
    b"g": lambda m: m.recall(m.integer(m.line())),
    b"i": _Machine.op_inst,
    b"l": _Machine.op_list,
    b"p": lambda m: m.remember(m.integer(m.line())),
    b"s": _Machine.op_setitem,
    b"t": _Machine.op_tuple,
    # protocol 1
    b"G": lambda m: m.push(m.number(_F8), 32),
    b"J": lambda m: m.push(m.number(_I4), 32),
    b"K": lambda m: m.push(m.number(_U1)),
    b"M": lambda m: m.push(m.number(_U2), 32),
    b"Q": _Machine.op_binpersid,
    b"T": lambda m: m.python2_text(m.number(_U4)),
    b"U": lambda m: m.python2_text(m.number(_U1)),
    b"X": lambda m: m.text_or_bytes(m.number(_U4), True),
    b"e": _Machine.op_appends,
    b"h": lambda m: m.recall(m.number(_U1)),
    b"j": lambda m: m.recall(m.number(_U4)),
    b"o": _Machine.op_obj,
    b"q": lambda m: m.remember(m.number(_U1)),
    b"r": lambda m: m.remember(m.number(_U4)),
    b"u": _Machine.op_setitems,
    b")": lambda m: m.push(()),
    b"]": lambda m: m.push([], 72),
    b"}": lambda m: m.push({}, 80),
    # protocol 2
    b"\x80": _Machine.op_proto,
    b"\x81": _Machine.op_reduce,
    b"\x82": lambda m: m.op_extension(_U1),
    b"\x83": lambda m: m.op_extension(_U2),
    b"\x84": lambda m: m.op_extension(_U4),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"\x8a": lambda m: m.long_of(m.number(_U1)),
    b"\x8b": lambda m: m.long_of(m.number(_I4)),
    # protocol 3
    b"B": lambda m: m.text_or_bytes(m.number(_U4), False),
    b"C": lambda m: m.text_or_bytes(m.number(_U1), False),
    # protocol 4: sets are lists here, since their elements are never hashed
    b"\x8c": lambda m: m.text_or_bytes(m.number(_U1), True),
    b"\x8d": lambda m: m.text_or_bytes(m.number(_U8), True),
    b"\x8e": lambda m: m.text_or_bytes(m.number(_U8), False),
    b"\x8f": lambda m: m.push([], 72),
    b"\x90": _Machine.op_appends,
    b"\x91": _Machine.op_list,
    b"\x92": _Machine.op_newobj_ex,
    b"\x93": _Machine.op_stack_global,
    b"\x94": lambda m: m.remember(len(m.memo) + len(m.scattered)),
    b"\x95": _Machine.op_frame,
    # protocol 5
    b"\x96": lambda m: m.text_or_bytes(m.number(_U8), False),
    b"\x97": _Machine.op_buffer,
    b"\x98": _Machine.op_buffer,
}

_OPCODES: list[Callable[[_Machine], None] | None] = [_NAMED.get(bytes([i])) for i in range(256)]
