"""The size expressions in an exported program: which of them are nothing but arithmetic.

torch writes a size as sympy's ``srepr`` (``Mul(Integer(2), Symbol('s0', integer=True))``), and
reads it back with ``sympify``, which is Python's ``eval``. So the text is parsed here, never
evaluated, and only calls of the functions below, on numbers and plainly named symbols, pass.
"""

from __future__ import annotations

import ast
import re

__all__ = ["is_arithmetic"]

_LONGEST = 4000

_SYMBOL = re.compile(r"[a-z]{1,8}[0-9]{1,6}")
_NUMBER = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?(e[+-]?[0-9]{1,3})?")

#: sympy's and torch's functions of sizes, and the classes of comparisons.
_FUNCTIONS = frozenset(
    {
        *("Add", "Mul", "Max", "Min", "Mod", "And", "Or", "Not", "Abs"),
        *("Equality", "Unequality", "GreaterThan", "LessThan"),
        *("StrictGreaterThan", "StrictLessThan"),
        *("FloorDiv", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "PythonMod"),
        *("ModularIndexing", "Where", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "TruncToInt"),
        *("TruncToFloat", "RoundToInt", "Identity", "IsNonOverlappingAndDenseIndicator"),
    }
)
_POWERS = frozenset({"Pow", "PowByNatural"})
_NAMES = frozenset({"true", "false"})
_HIGHEST_POWER = 8
_LARGEST = 2**63


def is_arithmetic(text: object) -> bool:
    """Whether ``text`` is a sympy expression that computes sizes and can do nothing else.

    Powers are of expressions without powers, to a small constant: what it takes to evaluate it is
    bounded too.
    """
    if not isinstance(text, str) or len(text) > _LONGEST or not text.isascii():
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return _sound(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _sound(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _NAMES
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    name, given = node.func.id, node.args
    if name == "Symbol":
        assumptions = all(
            k.arg is not None
            and isinstance(k.value, ast.Constant)
            and (k.value.value is True or k.value.value is False)
            for k in node.keywords
        )
        return assumptions and len(given) == 1 and _matches(given[0], _SYMBOL)
    if name == "Float":
        precise = all(k.arg == "precision" and _integer(k.value, 200) for k in node.keywords)
        return precise and len(given) == 1 and _matches(given[0], _NUMBER)
    if node.keywords:
        return False
    if name in ("Integer", "Rational"):
        return len(given) in (1, 2) and all(_integer(value, _LARGEST) for value in given)
    if name in _POWERS:
        return len(given) == 2 and _low_power(given[0], given[1])
    return name in _FUNCTIONS and all(map(_sound, given))


def _low_power(base: ast.expr, power: ast.expr) -> bool:
    small = (
        isinstance(power, ast.Call)
        and isinstance(power.func, ast.Name)
        and power.func.id == "Integer"
        and not power.keywords
        and len(power.args) == 1
        and _integer(power.args[0], _HIGHEST_POWER)
    )
    again = any(isinstance(part, ast.Name) and part.id in _POWERS for part in ast.walk(base))
    return small and not again and _sound(base)


def _integer(node: ast.expr, limit: int) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value <= limit


def _matches(node: ast.expr, form: re.Pattern[str]) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and form.fullmatch(node.value) is not None
    )
