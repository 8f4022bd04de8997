"""Reads a JSON body field by field; what nobody read is refused, never ignored."""

from __future__ import annotations

import math
from typing import Any

from hf_server.errors import refused


class Fields:
    """The fields of a body. Every reader raises ApiError (400) for a wrong type or value.

    null is as good as absent.
    """

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise refused("the body must be a JSON object")
        self._left = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        """The field as it is, None if absent."""
        return self._left.pop(name, None)

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number in [low, high]."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise refused(f"{name} must be a number, got {value!r}", param=name)
        if not low <= value <= high:
            raise refused(f"{name} must be in [{low:g}, {high:g}], got {value}", param=name)
        return float(value)

    def integer(
        self,
        name: str,
        default: int | None = None,
        *,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> int | None:
        """A whole number in [low, high]."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise refused(f"{name} must be a whole number, got {value!r}", param=name)
        if not low <= value <= high:
            raise refused(f"{name} must be in [{low:g}, {high:g}], got {value}", param=name)
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise refused(f"{name} must be true or false, got {value!r}", param=name)
        return value

    def text(self, name: str) -> str | None:
        """A text."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise refused(f"{name} must be a text, got {value!r}", param=name)
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise refused(f"{name} must be an object, got {value!r}", param=name)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """One text or a list of texts; empty texts are left out."""
        value = self.take(name)
        listed = [value] if isinstance(value, str) else value or []
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise refused(f"{name} must be a text or a list of texts", param=name)
        return tuple(item for item in listed if item)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.take(name)
        if value is None:
            return ()
        if not is_token_ids(value):
            raise refused(f"{name} must be a list of whole numbers", param=name)
        return tuple(value)

    def finish(self, *, without_effect: frozenset[str] = frozenset()) -> None:
        """Refuse what is left and not known to have no effect on the answer."""
        left = sorted(set(self._left) - without_effect)
        if left:
            raise refused(
                f"unknown or unsupported: {', '.join(left)}; this server ignores no field",
                param=left[0],
            )


def is_token_ids(value: Any) -> bool:
    """Whether this is a list of whole numbers, none of them negative."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
