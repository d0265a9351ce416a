"""Options that several commands share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from edgeopt.options.kinds import FLAG, METRICS, NUMBER, PATHS, TEXTS, WHOLE, WHOLES
from edgeopt.options.option import Option, options_of
from edgeopt.options.table import flag_of

__all__ = [
    "SETTINGS",
    "Command",
    "json",
    "of",
    "options",
    "plot",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Command(click.Command):
    """A command that drops nothing of what was typed: an option that takes one value is given once,
    and the verb is told which options were given at all."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        once = [p for p in order if isinstance(p, click.Option) and not (p.multiple or p.is_eager)]
        for number, option in enumerate(once):
            if option in once[:number]:
                raise click.UsageError(f"{option.opts[-1]} is given twice; give it once", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from edgeopt.core.calls import command_line, require_needed

        given = typed(ctx)
        require_needed(given)
        with command_line(given):
            return super().invoke(ctx)


_TYPED = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def typed(ctx: click.Context) -> list[str]:
    """Names of the parameters that the user gave, whatever their values."""
    return [name for name in ctx.params if ctx.get_parameter_source(name) in _TYPED]


def options(*given: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(given):
            command = option(command)
        return command

    return decorate


def of(kind: type, *leave: str) -> Callable[[_Command], _Command]:
    """The options of a verb, a dataclass of :mod:`edgeopt.options.table`, without some."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return options(
        *(
            click.option(*_names(name, option), **_typed(option, defaults[name]))
            for name, option in options_of(kind).items()
            if option.help is not None and name not in leave
        )
    )


def _names(name: str, option: Option) -> tuple[str, ...]:
    return (*(option.flags or (flag_of(name),)), name)


def _typed(option: Option, default: Any) -> dict[str, Any]:
    """What click is told of an option."""
    said = {"help": option.help, "metavar": option.metavar, **option.typed}
    least, choices = said.pop("min", option.least), said.pop("choices", option.takes.choices)
    if option.takes is FLAG:
        return {"is_flag": True, "default": default, **said}
    if option.takes in (TEXTS, METRICS, PATHS):
        return {"multiple": True, **said}
    if option.takes is WHOLES:
        shown = ",".join(map(str, default))
        return {"callback": _numbers, "default": shown, "show_default": bool(shown), **said}
    if default is dataclasses.MISSING:
        said, default = {"required": True, **said}, None
    if default is not None:
        said |= {"default": default, "show_default": True}
    if choices:
        given = {str(choice): choice for choice in choices}
        return {"type": click.Choice(list(given)), "callback": _chosen(given), **said}
    if option.takes is WHOLE:
        return {"type": int if least is None else click.IntRange(min=int(least)), **said}
    return {"type": float, **said} if option.takes is NUMBER else said


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """``1,4,8``: whole numbers, separated by commas."""
    try:
        return tuple(int(part) for part in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers separated by commas, as 1,4") from None


def _chosen(given: dict[str, Any]) -> Callable[..., Any]:
    return lambda ctx, param, value: given.get(value)


json = click.option("--json", "as_json", is_flag=True, help="Print the document, nothing else.")
plot = click.option("--plot", metavar="FILE", help="Draw the training's course, as .svg or .png.")
