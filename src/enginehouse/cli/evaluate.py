"""enginehouse eval, enginehouse resume, enginehouse rescore."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import (
    Given,
    JsonOption,
    QuietOption,
    TrustOption,
    VerboseOption,
    with_config_options,
)
from enginehouse.commands.configuration import EvaluationConfig, TaskConfig, with_task_paths
from enginehouse.core.errors import ConfigurationError
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

if TYPE_CHECKING:
    from enginehouse.jobs.export import Destination
    from enginehouse.results.summary import Report

RunArgument = Annotated[
    str, typer.Argument(help="A run's id, the beginning of one, or the path of its folder.")
]
DataOption = Annotated[
    str | None,
    typer.Option(help="Data for the task, if there is only one: a file, or hf:owner/name:file."),
]


@with_config_options(EvaluationConfig, without={"judge"})
def evaluate(
    *,
    more: Annotated[
        list[str] | None,
        typer.Argument(help="More models, evaluated on the same server: MODEL+FOLDER …"),
    ] = None,
    data: DataOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="The run's folder; a run that is there already is continued."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Export the figures of the complete run as this YAML file says."),
    ] = None,
    given: Given[EvaluationConfig],
    console: Console,
) -> None:
    """Evaluate a model on tasks: start a server, ask, score, report, stop the server."""
    values = task_values(given, data=data)
    settings = given.parse(values)
    others = [given.parse(values | {"model": model}) for model in more or ()]
    if (folder or export) is not None and others:
        raise ConfigurationError(
            "--folder and --export are for one run, and several models are to be evaluated",
            fix="evaluate them one by one, or leave the option out",
        )
    from enginehouse.commands.evaluate import run_evaluation

    context = Context(notify=console.note)
    to = _destinations(export) if export else []
    if not others:
        with console.progress() as progress:
            report = run_async(
                run_evaluation(
                    settings,
                    context,
                    progress=progress,
                    folder=folder and folder.expanduser().absolute(),
                )
            )
        try:
            _export(report, to, console)
        finally:
            _show(report, console)
        return

    from enginehouse.commands.evaluate_together import run_together
    from enginehouse.evaluation import require_headlines
    from enginehouse.report.comparison_table import print_comparison
    from enginehouse.report.terminal import print_report

    with console.progress() as progress:
        together = run_async(run_together([settings, *others], context, progress=progress))

    def print_together() -> None:
        for report in together.reports:
            print_report(report)
        for comparison in together.comparisons:
            print_comparison(comparison)

    console.result(together, text=print_together)
    for report in together.reports:
        require_headlines(report)


def resume(
    run: RunArgument,
    *,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Also repeat the samples or matches that failed."),
    ] = False,
    trust_run: TrustOption = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue a run: ask exactly what it has not asked yet, score it, and report.

    Also for experiments: play on from the last recorded answer of each match.
    """
    console = Console(json=json, verbose=verbose, quiet=quiet)
    trust = trust_run or _is_trusted_by_user(run)
    from enginehouse.commands.evaluate import resume_evaluation
    from enginehouse.store.runs import open_run

    if open_run(Layout.from_environment(), run).info.kind == "experiment":
        from enginehouse.cli.play import resume_experiment

        resume_experiment(run, console, retry_failed=retry_failed, trust=trust)
        return

    with console.progress() as progress:
        report = run_async(
            resume_evaluation(
                run,
                Context(notify=console.note),
                retry_failed=retry_failed,
                trust=trust,
                progress=progress,
            )
        )
    _show(report, console)


def rescore(
    run: RunArgument,
    *,
    trust_run: TrustOption = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a run's stored answers with the current version of its tasks, and show what changed.

    Nothing is asked again, except of a judge. The previous scores stay in the journal.
    """
    console = Console(json=json, verbose=verbose, quiet=quiet)
    trust = trust_run or _is_trusted_by_user(run)
    from enginehouse.commands.evaluate import rescore_evaluation
    from enginehouse.evaluation import require_headlines
    from enginehouse.report.rescoring_table import print_rescoring

    with console.progress() as progress:
        rescoring = run_async(
            rescore_evaluation(
                run,
                Context(notify=console.note),
                trust=trust,
                progress=progress,
            )
        )
    console.result(rescoring, text=lambda: print_rescoring(rescoring))
    require_headlines(rescoring.report)


def task_values(given: Given[Any], *, data: str | None) -> dict[str, Any]:
    """The values of the options and the file together, the tasks with `data` and their own paths.

    Options override what the file says about a single task, too. Raises ConfigurationError if there
    is no task.
    """
    from enginehouse.deployment.configuration import merged, read_yaml

    options = dict(given.options)
    names = options.pop("tasks", ())
    if data is not None and len(names) != 1:
        raise ConfigurationError(
            "--data needs exactly one --task",
            fix="with several tasks, give each its data in a --config file",
        )
    if names:
        options["tasks"] = [{"name": n} | ({"data": data} if data else {}) for n in names]
    file: dict[str, Any] = {}
    if given.file:
        file = with_task_paths(read_yaml(given.file), folder=given.file.parent)
    elif not names:
        raise ConfigurationError(
            "there is no task to evaluate",
            fix="name one with --task, which can be repeated; `enginehouse tasks` lists them",
        )
    values = merged(file, options)
    tasks = values.get("tasks")
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, dict):
            for name in TaskConfig.model_fields.keys() & options.keys():
                task.pop(name, None)
    return values


def _is_trusted_by_user(run: str) -> bool:
    """Ask whether someone else's run may do what its configuration says, if there is a terminal."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        return False
    from enginehouse.commands.foreign_runs import untrusted_settings

    settings = untrusted_settings(run, layout=Layout.from_environment())
    if not settings:
        return False
    for line in ("this run belongs to someone else, and its configuration says:", *settings):
        Console().note(line)  # even with --quiet, since it is a question
    return typer.confirm("Do you trust it?", err=True)


def _show(report: Report, console: Console) -> None:
    from enginehouse.evaluation import require_headlines
    from enginehouse.report.terminal import print_report

    console.result(report, text=lambda: print_report(report))
    require_headlines(report)


def _destinations(file: Path) -> list[Destination]:
    from enginehouse.jobs.export import read_destinations

    return read_destinations(file)


def _export(report: Report, to: list[Destination], console: Console) -> None:
    """Export a run that is complete."""
    if not to or not report.complete:
        return
    from enginehouse.jobs.export import export_run
    from enginehouse.store.runs import open_run

    for exported in export_run(open_run(Layout.from_environment(), report.folder), to):
        console.note(f"exported to {exported.to}: {exported.place}")
