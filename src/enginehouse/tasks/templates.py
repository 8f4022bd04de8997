"""Jinja templates of a user's task: sandboxed, and an unknown name is an error."""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Mapping
from typing import Any, Final

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from enginehouse.core.errors import ConfigurationError, DataError

# {question}, as in Python's format strings
_BRACED: Final = re.compile(r"(?<!\{)\{\s{0,3}(?:item\.)?([A-Za-z_]\w{0,80})\s{0,3}\}(?!\})")


class _NullValueError(ValueError):
    """A template inserts a null, which would read "None"."""


def _not_null(value: Any) -> Any:
    if value is None:
        raise _NullValueError("a value in it is null")
    return value


_ENVIRONMENT: Final = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, finalize=_not_null
)


class Template:
    """A compiled template. `origin` names it in errors ("my.yaml: prompt").

    Raises ConfigurationError with the line for a syntax error.
    """

    def __init__(self, source: str, *, origin: str) -> None:
        self._origin = origin
        try:
            self._template = _ENVIRONMENT.from_string(source)
            self._braced = _braced_names(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigurationError(
                f"{origin}, line {error.lineno}: not a Jinja template", why=error.message
            ) from error

    def require_no_braces(self, fields: Collection[str]) -> None:
        """Raise ConfigurationError if a field's name is in single braces, as in {question}."""
        for name in self._braced:
            if name in fields:
                raise ConfigurationError(
                    f"{self._origin} contains {{{name}}}, and {name!r} is a field of the data",
                    why="single braces are plain text: the field's value would not be filled in",
                    fix=f"write {{{{ {name} }}}} for the value, or "
                    f"{{% raw %}}{{{name}}}{{% endraw %}} to keep the braces",
                )

    def render(self, fields: Mapping[str, Any], *, item: str) -> str:
        """The text for one item, whose fields are variables and are also in `item`.

        Raises DataError with the template's line and the item.
        """
        try:
            return self._template.render({"item": fields, **fields})
        except Exception as error:
            lines = [
                frame.lineno
                for frame in traceback.extract_tb(error.__traceback__)
                if frame.filename == "<template>"
            ]
            where = f", line {lines[-1]}" if lines else ""
            why, fix = f"{type(error).__name__}: {error}", f"its fields are: {', '.join(fields)}"
            if isinstance(error, _NullValueError):
                nulls = [name for name, value in fields.items() if value is None]
                why = str(error)
                fix = "give the record a value, or write {{ field or '' }} if none is needed"
                fix += f"; null in it: {', '.join(nulls)}" if nulls else ""
            raise DataError(
                f"{self._origin}{where}: cannot be rendered for item {item!r}",
                why=why,
                fix=fix,
            ) from error


def _braced_names(source: str) -> tuple[str, ...]:
    """The names in single braces outside expressions and raw blocks."""
    names: list[str] = []
    is_raw = False
    for _, kind, text in _ENVIRONMENT.lex(source):
        if kind in ("raw_begin", "raw_end"):
            is_raw = kind == "raw_begin"
        elif kind == "data" and not is_raw:
            names += _BRACED.findall(text)
    return tuple(names)
