"""What each engine can do."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import IO

from rich.table import Table
from rich.text import Text

from enginehouse.core.sampler import Capability
from enginehouse.report.terminal import make_console, print_rows
from enginehouse.results.engines import EngineFacts

YES, NO = "yes", "-"
ENGINE_COLUMNS = ("engine", "needs", "tried with")


def capability_rows(engines: Sequence[EngineFacts]) -> Iterator[tuple[str, ...]]:
    """A row per capability: its name, then whether each engine has it."""
    for capability in Capability:
        marks = (YES if capability in engine.capabilities else NO for engine in engines)
        yield (capability.value.replace("_", " "), *marks)


def engine_row(engine: EngineFacts) -> tuple[str, str, str]:
    """An engine's name, what it needs, and what it has been tested with."""
    return (engine.name, _given(engine), engine.tried or "nothing: documented only, never run")


def _given(engine: EngineFacts) -> str:
    if engine.runs == "here":
        needs = {"gguf": "a GGUF file", "none": "a command"}
        return needs.get(engine.model_format or "", "a checkpoint")
    return next(iter((*engine.key_variables, *engine.url_variables)), "an address")


def print_engines(engines: Sequence[EngineFacts], *, file: IO[str] | None = None) -> None:
    """Print what each engine can do, then what each has been tested with."""
    console = make_console(file or sys.stdout)
    # One space between columns, so that all engines fit side by side into 80 columns, where the
    # longest names of capabilities take two lines.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("")
    for engine in engines:
        table.add_column(engine.name, justify="center", no_wrap=True)
    for name, *marks in capability_rows(engines):
        table.add_row(name, *(Text(m, style="green" if m == YES else "dim") for m in marks))
    console.print(table)
    console.print()
    print_rows(ENGINE_COLUMNS, map(engine_row, engines), file=file)
