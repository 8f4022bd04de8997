"""A table of figures that is written as lines where it would not fit."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from enginehouse.report.terminal import make_table

_NAMES_WIDTH = 30  # of the two names together; narrower ones would be unreadable


class FittingTable:
    """A table if it fits, otherwise a few lines per row. The first two columns are names."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._columns = columns
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        numbers = list(zip(self._columns, *self._rows, strict=True))[2:]
        if _NAMES_WIDTH + sum(2 + max(map(len, column)) for column in numbers) > options.max_width:
            for name, metric, *cells in self._rows:
                yield Text.assemble((name, "bold"), "  " if name else "", metric)
                for column, cell in zip(self._columns[2:], cells, strict=True):
                    yield Text(f"  {column}: {cell}")
            return
        table = make_table(*self._columns, right=range(2, len(self._columns)))
        for row in self._rows:
            table.add_row(*map(Text, row))
        yield table
