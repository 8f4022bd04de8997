"""Named plug-ins, written as strings `name -> "module:Class"`: listing them imports none.

Further ones come from installed packages, through entry points (docs/contributing).
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.core.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Registry:
    """The plug-ins of one kind ("engine", "task" …): our own, and those of entry-point `group`.

    Entry points are read when names are listed or a name is not one of our own. A plug-in cannot
    replace one of our own. `problem` takes a plug-in's name and what it stands for, and says what
    is wrong with it, as in "lacks: check"; None if nothing is.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str],
        *,
        group: str,
        problem: Callable[[str, Any], str | None] = lambda _name, _loaded: None,
    ) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._group = group
        self._problem = problem

    def names(self) -> tuple[str, ...]:
        """Every known name, sorted."""
        return tuple(sorted({*self._entries, *self._plugins}))

    def load(self, name: str) -> Any:
        """Import what `name` stands for.

        Raises UnknownNameError, and ConfigurationError for a plug-in that cannot be imported or has
        a problem.
        """
        if name in self._entries:
            return load_object(self._entries[name])
        if name not in self._plugins:
            raise UnknownNameError(self.kind, name, self.names())
        package = self.package(name)
        title = f"the {self.kind} {name} of the package {package}"
        fix = f"update or uninstall {package}"
        try:
            loaded = load_object(self._plugins[name].value)
            problem = self._problem(name, loaded)
        except Exception as error:
            raise ConfigurationError(
                f"{title} could not be loaded",
                why=f"{type(error).__name__}: {error}{place_of(error)}",
                fix=fix,
            ) from error
        if problem is not None:
            raise ConfigurationError(f"{title} {problem}", fix=fix)
        return loaded

    def package(self, name: str) -> str | None:
        """The package that a plug-in comes from; None for one of our own."""
        if name in self._entries:
            return None
        package = self._plugins[name].dist
        return package.name if package else "unknown"

    def overridden(self) -> dict[str, str]:
        """The packages of plug-ins that have the name of one of our own, by that name."""
        names = sorted(self._entries.keys() & self._plugins.keys())
        packages = {name: self._plugins[name].dist for name in names}
        return {name: package.name if package else "unknown" for name, package in packages.items()}

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


def place_of(error: BaseException) -> str:
    """Where a plug-in raised an error, as " (engine.py:50)"; "" if none of its lines ran."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [f for f in frames if not f.filename.startswith("<") and f.filename not in _IMPORTING]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


_IMPORTING = (__file__, importlib.__file__)
