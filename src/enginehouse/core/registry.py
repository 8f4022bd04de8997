"""Registries are strings, `name -> "module:Class"`: listing what there is imports nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from enginehouse.core.errors import UnknownNameError


class Registry:
    """Named plug-ins of one kind ("engine", "task" …)."""

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def names(self) -> tuple[str, ...]:
        """Every known name, sorted."""
        return tuple(sorted(self._entries))

    def load(self, name: str) -> Any:
        """Import what `name` stands for; an unknown name raises UnknownNameError."""
        try:
            target = self._entries[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._entries) from None
        return load_object(target)


def load_object(target: str) -> Any:
    """Import `module:attribute`. Raises ImportError or AttributeError as Python words them."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
