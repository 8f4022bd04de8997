"""enginehouse launch export."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import JsonOption, QuietOption, VerboseOption
from enginehouse.core.errors import ConfigurationError
from enginehouse.runtime.context import Context


def export(
    references: Annotated[
        list[str],
        typer.Argument(help="Jobs or runs: ids, beginnings of them, or the folders of runs."),
    ],
    *,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="json, csv, parquet, mlflow, wandb or local; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file of json, csv and parquet.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A YAML file with a section `export`, like a launch file."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", help="KEY=VALUE of the exporter's settings."),
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export figures, with their intervals and labels; a second export updates the first.

    Exits with status 13 if the figures could not be exported, 8 if there is no such run.
    """
    console = Console(json=json, verbose=verbose, quiet=quiet)
    from enginehouse.jobs.export import Exported, choose_destinations, export_run, find_run

    if not to and not config:
        raise ConfigurationError(
            "no exporter is named", fix="name an exporter with --to, or a file with --config"
        )
    chosen = choose_destinations(to or (), file=config, out=out, words=override or ())
    for one in chosen:
        for key, reason in one.not_acted_on.items():
            console.note(f"note: {key} has no effect: {reason}")
    context = Context(notify=console.note)
    exported: list[Exported] = []
    with TemporaryDirectory(prefix="enginehouse-export-") as folder:
        for reference in references:
            run = run_async(find_run(reference, context, into=Path(folder)))
            exported += export_run(run, chosen)

    def text() -> None:
        for one in exported:
            console.say(f"{one.run}: {one.figures} figures to {one.to}: {one.place}")

    console.result(exported, text=text)
