"""Named plug-ins, written as strings `name -> "module:Class"`: listing them imports none.

Further ones come from installed packages, through entry points (docs/contributing).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from enginehouse.core.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Registry:
    """The plug-ins of one kind ("engine", "task" …): our own, and those of entry-point `group`.

    Entry points are read when names are listed or a name is not one of our own. A plug-in cannot
    replace one of our own.
    """

    def __init__(self, kind: str, entries: Mapping[str, str], *, group: str) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._group = group

    def names(self) -> tuple[str, ...]:
        """Every known name, sorted."""
        return tuple(sorted({*self._entries, *self._plugins}))

    def load(self, name: str) -> Any:
        """Import what `name` stands for.

        Raises UnknownNameError, and ConfigurationError for a plug-in that cannot be imported.
        """
        if name in self._entries:
            return load_object(self._entries[name])
        if name not in self._plugins:
            raise UnknownNameError(self.kind, name, self.names())
        plugin = self._plugins[name]
        try:
            return load_object(plugin.value)
        except Exception as error:
            package = plugin.dist.name if plugin.dist else "unknown"
            raise ConfigurationError(
                f"the {self.kind} {name} of the package {package} could not be loaded",
                why=f"{type(error).__name__}: {error}",
                fix=f"update or uninstall {package}",
            ) from error

    def load_all(self, *, on_error: Callable[[ConfigurationError], None]) -> Iterator[Any]:
        """Import everything, sorted by name; a broken plug-in is reported and left out."""
        for name in self.names():
            try:
                loaded = self.load(name)
            except ConfigurationError as error:
                on_error(error)
            else:
                yield loaded

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points

        return {plugin.name: plugin for plugin in entry_points(group=self._group)}


def load_object(target: str) -> Any:
    """Import `module:attribute`. Raises ImportError or AttributeError as Python words them."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
