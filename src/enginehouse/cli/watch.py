"""enginehouse watch."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.evaluate import DataOption, task_values
from enginehouse.cli.options import Given, with_config_options
from enginehouse.core.errors import ConfigurationError
from enginehouse.runtime.context import Context
from enginehouse.watch.configuration import WatchConfig, WatchSettings

if TYPE_CHECKING:
    from enginehouse.results.curve import Curve, CurvePoint
    from enginehouse.watch.submitted import LaunchedWatch


@with_config_options(WatchConfig, without={"adapter", "judge"})
def watch(
    *,
    data: DataOption = None,
    launch: Annotated[
        Path | None,
        typer.Option(help="Submit a job of this launch file for each checkpoint instead."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", help="KEY=VALUE of the launch file."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most jobs at once; by default 1 on this machine and no limit elsewhere.",
        ),
    ] = None,
    given: Given[WatchConfig],
    console: Console,
) -> None:
    """Evaluate checkpoints and adapters as they appear in a folder, and plot their scores.

    The model is the base of the adapters; it is evaluated, too. With --launch, it is the launch
    file's own.
    """
    launched = settings = None
    if launch is not None:
        launched = _launched(given, launch, overrides=override or (), jobs=jobs, data=data)
    elif override or jobs:
        raise ConfigurationError("-o and --jobs need --launch", fix="remove them, or add it")
    else:
        settings = given.parse(task_values(given, data=data))
    from enginehouse.report.curve_table import LinePerPoint, curve_display
    from enginehouse.watch import watcher

    shown = (
        nullcontext(LinePerPoint(sys.stderr, sys.stderr))
        if console.json
        else curve_display(sys.stdout, sys.stderr)
    )
    latest: Curve | None = None
    try:
        with shown as display:

            def show(curve: Curve, point: CurvePoint | None) -> None:
                nonlocal latest
                latest = curve
                if not console.json:
                    display.curve(curve, point)

            context = Context(notify=(lambda _: None) if console.quiet else display.note)
            if launched is not None:
                run_async(watcher.watch_with_jobs(launched, context, shown=show))
            else:
                assert settings is not None
                progress = (lambda _: None) if console.quiet else display.progress
                run_async(watcher.watch(settings, context, progress=progress, shown=show))
    finally:  # Ctrl-C is the usual end of a watch that waits for more
        if console.json and latest is not None:
            console.result(latest, text=lambda: None)


def _launched(
    given: Given[WatchConfig], file: Path, *, overrides: Any, jobs: int | None, data: str | None
) -> LaunchedWatch:
    """The watch of a launch file, which has the model, the tasks and the server's options."""
    from enginehouse.deployment.configuration import merged, parse, read_yaml
    from enginehouse.watch.submitted import LaunchedWatch

    read_yaml(file)  # a file that cannot be read is said first
    options = {name: value for name, value in given.options.items() if value != {}}
    values = merged(read_yaml(given.file) if given.file else {}, options)
    unused = sorted(values.keys() - WatchSettings.model_fields.keys())
    if unused or data is not None:
        raise ConfigurationError(
            f"without effect with --launch: {', '.join([*unused, *(['data'] if data else [])])}",
            why="the model, the tasks and the server are those of the launch file",
            fix="put them into the launch file, or change it with -o KEY=VALUE",
        )
    settings = parse(WatchSettings, values, origin=str(given.file or "the command line"))
    return LaunchedWatch.read(settings, file=file, overrides=overrides, jobs=jobs)
