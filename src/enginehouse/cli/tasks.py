"""enginehouse tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption
from enginehouse.core.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from enginehouse.tasks.base import TaskInfo


def tasks(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Only the tasks with all of these in their name or description."),
    ] = None,
    *,
    harness: Annotated[
        str | None, typer.Option(help="List the tasks of a harness: lm-eval or inspect.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="A folder with tasks of your own for the harness.")
    ] = None,
    harness_version: Annotated[
        str | None, typer.Option(help="The harness's version; by default the tested one.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the tasks: size, licence, what "correct" means, and what they need.

    With --harness, those of another project's harness, by the names that --task takes.
    """
    console = Console(json=json)
    if harness is not None:
        list_harness_tasks(
            words or (),
            harness=harness,
            include_path=include_path,
            version=harness_version,
            console=console,
        )
        return
    if include_path is not None or harness_version is not None:
        raise ConfigurationError(
            "--include-path and --harness-version are for the tasks of a harness",
            fix="name it with --harness",
        )
    from enginehouse.tasks.registry import list_tasks

    listed = list_tasks(notify=console.note)
    infos = [info for info in listed if has_words(f"{info.name} {info.description}", words or ())]
    console.result(infos, text=lambda: print_tasks(infos))


def list_harness_tasks(
    words: Sequence[str],
    *,
    harness: str,
    include_path: Path | None,
    version: str | None,
    console: Console,
) -> None:
    """Print the tasks of a harness, a line for each; its environment is built if it is missing."""
    from enginehouse.cli.console import run_async
    from enginehouse.commands.harness_tasks import list_tasks_of
    from enginehouse.report.terminal import print_rows
    from enginehouse.runtime.context import Context

    listed = run_async(
        list_tasks_of(
            harness,
            include_path=include_path and include_path.expanduser().absolute(),
            version=version,
            context=Context(notify=console.note),
        )
    )
    found = [task for task in listed if has_words(f"{task.name} {task.description}", words)]
    if not found:
        asked = " ".join(words)
        close = nearest(asked, [task.name.removeprefix(f"{harness}:") for task in listed])
        raise ConfigurationError(
            f"none of the {len(listed):,} tasks of {harness} has {asked!r} in its name or text",
            fix=f"did you mean {harness}:{close}?"
            if close
            else "give fewer words, or shorter ones",
        )

    def text() -> None:
        rows = [(task.name, task.kind, task.description) for task in found]
        if sys.stdout.isatty():
            print_rows(("task", "asks for", "description"), rows)
        else:  # for grep and the like: long names are not broken over two lines
            typer.echo("\n".join("  ".join(filter(None, row)) for row in rows))
        console.note(f"{len(found):,} of {len(listed):,} tasks")

    console.result(found, text=text)


def has_words(text: str, words: Iterable[str]) -> bool:
    """Whether all of the words are in the text, in any case."""
    folded = text.casefold()
    return all(word.casefold() in folded for word in words)


def print_tasks(infos: Iterable[TaskInfo]) -> None:
    """Print a paragraph per task."""
    from rich.padding import Padding
    from rich.text import Text

    from enginehouse.report.terminal import make_console

    console = make_console(sys.stdout)
    for info in infos:
        size = "" if info.size is None else f"  {info.size:,} items"
        console.print(Text(info.name, style="bold") + Text(f"{size}, {info.licence}"))
        lines = [info.description, f"correct: {info.headline}"]
        lines += [f"needs:   {info.needs}"] if info.needs else []
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
