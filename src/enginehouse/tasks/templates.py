"""Jinja templates of a user's task: sandboxed, and an unknown name is an error."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, Final

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from enginehouse.core.errors import ConfigurationError, DataError

_ENVIRONMENT: Final = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)


class Template:
    """A compiled template. `origin` names it in errors ("my.yaml: prompt").

    Raises ConfigurationError with the line for a syntax error.
    """

    def __init__(self, source: str, *, origin: str) -> None:
        self._origin = origin
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigurationError(
                f"{origin}, line {error.lineno}: not a Jinja template", why=error.message
            ) from error

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
            raise DataError(
                f"{self._origin}{where}: cannot be filled in for item {item!r}",
                why=f"{type(error).__name__}: {error}",
                fix=f"its fields are: {', '.join(fields)}",
            ) from error
