"""enginehouse diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption

if TYPE_CHECKING:
    from enginehouse.commands.diagnose import LogReport


def diagnose(
    log: Annotated[
        Path, typer.Argument(metavar="FILE|-", help="The log file, or - to read standard input.")
    ],
    *,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", help="The engine that wrote the log; by default it is recognised."
        ),
    ] = None,
    exit_code: Annotated[
        int | None,
        typer.Option("--exit-code", help="The engine's exit code; -9 or 137 for SIGKILL."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Explain from an engine's log why the engine failed and what to do about it.

    Exits with status 0 even if the log says nothing about a failure. docs/errors.md lists the
    kinds of failure.
    """
    console = Console(json=json)
    from enginehouse.commands.diagnose import diagnose_file

    report = diagnose_file(log, engine=engine, exit_code=exit_code, notify=console.note)
    console.result(report, text=lambda: _print(report, console))


def _print(report: LogReport, console: Console) -> None:
    engine = report.engine or "unknown engine"
    if report.kind is None:
        console.say(f"{engine}: the log says nothing about a failure")
        console.say("  next: pass the whole log, from its start, and --exit-code if you know it")
        return
    console.say(f"{engine}: {report.kind}{' (a guess)' if report.guess else ''}")
    console.say(f"  why:  {report.cause}")
    if report.evidence and report.evidence != report.cause:
        console.say(f"  seen: {report.evidence}")
    console.say(f"  next: {report.next}")
