"""HTML put together so that no escaping can be forgotten: a string is text."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

from edgeopt.report.numbers import Number, Said, printable

__all__ = ["Content", "Html", "el", "join"]


class Html(str):
    """A piece of HTML that is whole and safe; any other string is text, and is escaped."""

    __slots__ = ()


Content: TypeAlias = "str | Number | Iterable[Content] | None"

_VOID = frozenset({"meta", "link", "br", "img"})


def el(tag: str, *children: Content, **attributes: str | bool | None) -> Html:
    """``<tag ...>children</tag>``. Attributes: ``class_`` is class, ``data_key`` data-key; True is
    the bare name, False and None leave it out."""
    said = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{said}>")
    return Html(f"<{tag}{said}>{join(children)}</{tag}>")


def _attribute(name: str, value: str | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(value, quote=True)}"'


def join(content: Content) -> Html:
    """Contents one after the other. Text is escaped; words of the document are marked as such, and
    a number carries the place and the value that it comes from."""
    if content is None:
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, Number):
        return _number(content)
    if isinstance(content, Said):
        return el("span", str(content), data_words=True)
    if isinstance(content, str):
        return Html(html.escape(_shown(content), quote=False))
    return Html("".join(join(part) for part in content))


def _shown(text: str) -> str:
    """Without control characters; blanks at the ends are kept, they stand between words."""
    return text if text.isprintable() else printable(text)


def _number(number: Number) -> Html:
    return el(
        "span",
        number.text,
        class_="n",
        data_key=number.key,
        data_value=repr(float(number.value)),
        data_shape=None if number.shape == "value" else number.shape,
        data_scale=None if number.scale == 1.0 else repr(number.scale),
    )
