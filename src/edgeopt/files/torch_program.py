"""Exported programs held against torch's schema: which of them can do nothing but compute.

A program is JSON, but loading it is not only reading: torch looks its targets up by attribute,
evaluates its size expressions and guards as Python, and makes Python source of its names. So what
is let through is listed here: the fields of ``torch/_export/serde/schema.py``, each with what it
may hold. Whatever is on no list makes a program one that needs its user's trust.

:func:`plain` gives back the document made of checked values alone, without what a program does not
need to compute: stack traces (which name the author's folders), other metadata, and guards.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from edgeopt.files.text import one_line
from edgeopt.files.torch_symbols import is_arithmetic

__all__ = ["NotPlainError", "plain", "plain_config"]


class NotPlainError(ValueError):
    """The program holds something that could run code, or that is not known; says what."""


_Check = Callable[[Any], Any]


def _refuse(what: str, value: object) -> NoReturn:
    raise NotPlainError(one_line(f"{what} {str(value)[:80]!r}"))


# ----------------------------------------------------------------------------------- plain values


def _name(value: Any) -> str:
    """A node's name: becomes a variable in Python source."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or keyword.iskeyword(value):
        _refuse("the name", value)
    return value


def _maybe_name(value: Any) -> str:
    return "" if value == "" else _name(value)


def _dotted(value: Any) -> str:
    """A parameter's name: becomes attributes of a module."""
    if not isinstance(value, str) or not _DOTTED.fullmatch(value) or "__" in f".{value}".split("."):
        _refuse("the parameter name", value)
    if any(part.startswith("__") for part in value.split(".")):
        _refuse("the parameter name", value)
    return value


def _module(value: Any) -> str:
    return "" if value == "" else _dotted(value)


def _text(value: Any) -> str:
    """Text that is only ever a value."""
    if not isinstance(value, str) or len(value) > 10_000:
        _refuse("the text", value)
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        _refuse("the word", value)
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**64:
        _refuse("the integer", value)
    return value


def _number(value: Any) -> Any:
    if type(value) not in (int, float) and value not in ("Infinity", "-Infinity", "NaN"):
        _refuse("the number", value)
    return value


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        _refuse("the truth value", value)
    return value


def _expression(value: Any) -> str:
    if not is_arithmetic(value):
        _refuse("the size expression", value)
    return str(value)


def _target(value: Any) -> str:
    """An operator's name: torch looks it up, attribute by attribute."""
    if not isinstance(value, str) or not (value in _TARGETS or _OPERATOR.fullmatch(value)):
        _refuse("the operator", value)
    if value.startswith(_UNWANTED):
        _refuse("the operator", value)
    return value


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{0,60}")
_DOTTED = re.compile(r"[A-Za-z0-9_-]{1,200}(\.[A-Za-z0-9_-]{1,200}){0,60}")
_SYMBOL = re.compile(r"[a-z]{1,8}[0-9]{1,4}")
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims)\.(__i?(and|or|xor|lshift|rshift)__|(?!__)[A-Za-z_]\w{0,99})"
    r"\.[A-Za-z]\w{0,99}",
    re.ASCII,
)

#: An operator that opens the file it is given.
_UNWANTED = "torch.ops.aten.from_file"

#: Arithmetic on sizes, and the operators that only say how the graph inside them is run.
_FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "_operator": (
        *("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv"),
        *("mod", "pow", "truediv", "and_", "or_", "lshift", "rshift", "getitem"),
    ),
    "torch": (
        *("sym_not", "sym_int", "sym_float", "sym_ite", "sym_max", "sym_min", "sym_sum"),
        "_sym_sqrt",
    ),
    "math": ("trunc", "ceil", "floor"),
    "torch.ops.higher_order": ("wrap_with_set_grad_enabled", "wrap_with_autocast", "cond"),
}
_TARGETS = frozenset(f"{where}.{name}" for where, names in _FUNCTIONS.items() for name in names)


# ------------------------------------------------------------------------------------- structures


def _listed(check: _Check) -> _Check:
    def run(value: Any) -> list[Any]:
        if not isinstance(value, list):
            _refuse("what should be a list,", value)
        return [check(item) for item in value]

    return run


def _mapped(key: _Check, check: _Check) -> _Check:
    def run(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            _refuse("what should be a mapping,", value)
        return {key(name): check(item) for name, item in value.items()}

    return run


def _or_null(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


def _dropped(value: Any) -> Any:
    """Not needed to compute: nothing in its place."""
    return type(value)() if isinstance(value, (dict, list)) else None


def _empty(value: Any) -> Any:
    if value:
        _refuse("the field", value)
    return value


def _record(**fields: _Check) -> _Check:
    """Fields by name; one that is not known must say nothing."""

    def run(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            _refuse("what should be a record,", value)
        for name, item in value.items():
            if name not in fields and item:
                _refuse("the field", name)
        return {name: check(value[name]) for name, check in fields.items() if name in value}

    return run


def _union(**kinds: _Check) -> _Check:
    """One of several kinds, by its tag."""

    def run(value: Any) -> dict[str, Any]:
        tag = next(iter(value), None) if isinstance(value, dict) and len(value) == 1 else None
        if tag not in kinds:
            _refuse("the argument", value)
        return {tag: kinds[tag](value[tag])}

    return run


def _later(name: str) -> _Check:
    """A check that is defined below, since graphs hold graphs."""
    return lambda value: globals()[name](value)


# ----------------------------------------------------------------------------------------- schema

_tensor = _record(name=_name)
_sym_expr = _record(
    expr_str=_expression,
    hint=_or_null(_union(as_int=_integer, as_float=_number, as_bool=_boolean)),
)
_sym_int = _union(as_expr=_sym_expr, as_int=_integer)
_sym_float = _union(as_expr=_sym_expr, as_float=_number)
_sym_bool = _union(as_expr=_sym_expr, as_bool=_boolean)
_device = _record(type=_word, index=_or_null(_integer))
_tensor_meta = _record(
    dtype=_integer,
    sizes=_listed(_sym_int),
    requires_grad=_boolean,
    device=_device,
    strides=_listed(_sym_int),
    storage_offset=_sym_int,
    layout=_integer,
)
_int_argument = _union(as_name=_name, as_int=_integer)
_float_argument = _union(as_name=_name, as_float=_number)
_bool_argument = _union(as_name=_name, as_bool=_boolean)
_optional_tensor = _union(as_tensor=_tensor, as_none=_boolean)
_argument = _union(
    as_none=_boolean,
    as_tensor=_tensor,
    as_tensors=_listed(_tensor),
    as_int=_integer,
    as_ints=_listed(_integer),
    as_float=_number,
    as_floats=_listed(_number),
    as_string=_text,
    as_strings=_listed(_text),
    as_sym_int=_int_argument,
    as_sym_ints=_listed(_int_argument),
    as_sym_float=_float_argument,
    as_sym_floats=_listed(_float_argument),
    as_sym_bool=_bool_argument,
    as_sym_bools=_listed(_bool_argument),
    as_scalar_type=_integer,
    as_memory_format=_integer,
    as_layout=_integer,
    as_device=_device,
    as_bool=_boolean,
    as_bools=_listed(_boolean),
    as_graph=_record(name=_name, graph=_later("_graph")),
    as_optional_tensor=_optional_tensor,
    as_optional_tensors=_listed(_optional_tensor),
    as_complex=_record(real=_number, imag=_number),
    as_nested_tensors=_listed(_listed(_tensor)),
    as_int_lists=_listed(_listed(_integer)),
    as_float_lists=_listed(_listed(_number)),
)
_node = _record(
    target=_target,
    inputs=_listed(_record(name=_maybe_name, arg=_argument, kind=_or_null(_integer))),
    outputs=_listed(_argument),
    metadata=_dropped,
    is_hop_single_tensor_return=_or_null(_boolean),
    name=_or_null(_maybe_name),
)
_graph = _record(
    inputs=_listed(_argument),
    outputs=_listed(_argument),
    nodes=_listed(_node),
    tensor_values=_mapped(_name, _tensor_meta),
    sym_int_values=_mapped(_name, _sym_int),
    sym_bool_values=_mapped(_name, _sym_bool),
    sym_float_values=_mapped(_name, _sym_float),
    is_single_tensor_return=_boolean,
    custom_obj_values=_empty,
)
_constant = _union(
    as_none=_boolean, as_int=_integer, as_float=_number, as_string=_text, as_bool=_boolean
)
_signature = _record(
    input_specs=_listed(
        _union(
            user_input=_record(arg=_argument),
            parameter=_record(arg=_tensor, parameter_name=_dotted),
            buffer=_record(arg=_tensor, buffer_name=_dotted, persistent=_boolean),
            tensor_constant=_record(arg=_tensor, tensor_constant_name=_dotted),
            constant_input=_record(name=_maybe_name, value=_constant),
        )
    ),
    output_specs=_listed(
        _union(
            user_output=_record(arg=_argument),
            buffer_mutation=_record(arg=_tensor, buffer_name=_dotted),
            user_input_mutation=_record(arg=_tensor, user_input_name=_name),
        )
    ),
)


def _tree(value: Any) -> str:
    """How arguments nest, as JSON in a string: plain containers only.

    torch looks other types up, and imports what a context names.
    """
    try:
        made = json.loads(value)
    except (TypeError, ValueError):
        _refuse("the tree of arguments", value)
    if not isinstance(made, list) or len(made) != 2 or made[0] != 1:
        _refuse("the tree of arguments", value)
    return json.dumps([1, _branch(made[1])])


def _branch(value: Any) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, dict) else ""
    children = value.get("children_spec") if isinstance(value, dict) else None
    if kind not in _CONTAINERS or not isinstance(children, list):
        _refuse("the container", kind or value)
    context = value.get("context")
    if isinstance(context, str):
        try:
            keys = json.loads(context)
        except ValueError:
            _refuse("the keys", context)
        if keys is not None:
            _listed(lambda key: _integer(key) if type(key) is int else _text(key))(keys)
    elif context is not None:
        _refuse("the keys", context)
    return {"type": kind, "context": context, "children_spec": [_branch(c) for c in children]}


_CONTAINERS = (
    None,
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
)

_call = _record(
    fqn=_module,
    signature=_or_null(
        _record(
            inputs=_listed(_argument),
            outputs=_listed(_argument),
            in_spec=_tree,
            out_spec=_tree,
            forward_arg_names=_or_null(_listed(_name)),
        )
    ),
)


def _range_name(value: Any) -> str:
    if not isinstance(value, str) or not _SYMBOL.fullmatch(value):
        _refuse("the symbol", value)
    return value


def _verifier(value: Any) -> str:
    if value not in ("", "ATEN", "TRAINING", "EDGE"):
        _refuse("the verifier", value)
    return str(value)


_program = _record(
    graph_module=_record(
        graph=_graph,
        signature=_signature,
        module_call_graph=_listed(_call),
        metadata=_dropped,
        treespec_namedtuple_fields=_dropped,
    ),
    opset_version=_mapped(_word, _integer),
    range_constraints=_mapped(
        _range_name, _record(min_val=_or_null(_integer), max_val=_or_null(_integer))
    ),
    schema_version=_record(major=_integer, minor=_integer),
    verifiers=_listed(_verifier),
    torch_version=_word,
    guards_code=_dropped,
)

_payloads = _record(
    config=_mapped(
        _dotted,
        _record(
            path_name=_word,
            is_param=_boolean,
            use_pickle=_empty,
            tensor_meta=_tensor_meta,
        ),
    )
)


def plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """The program (the object in ``models/model.json``), made of checked values alone.

    Raises NotPlainError naming the first thing in it that is not known to be harmless.
    """
    return _checked(_program, document)


def plain_config(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the table of weights or constants: raw tensors, none of them pickled."""
    return _checked(_payloads, document)


def _checked(check: _Check, document: Mapping[str, Any]) -> dict[str, Any]:
    try:
        made: dict[str, Any] = check(document)
    except RecursionError:
        raise NotPlainError("graphs within graphs, too deep to follow") from None
    return made
