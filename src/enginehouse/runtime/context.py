"""Where an operation keeps its files, and whom it tells how it is getting on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from enginehouse.store.layout import Layout

Notify = Callable[[str], None]


def _say_nothing(_: str) -> None:
    """Progress that nobody reads."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Passed to everything that provisions, starts or asks; one for a whole command.

    `layout` says where runs, environments, models and records are kept. `notify` is given one line
    of plain text at a time; it may be called from any thread and does not block for long.
    """

    layout: Layout = field(default_factory=Layout.from_environment)
    notify: Notify = _say_nothing
