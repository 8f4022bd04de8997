"""enginehouse eval, enginehouse resume."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import (
    ConfigOption,
    EngineOption,
    JsonOption,
    ModelArgument,
    PathOption,
    PythonOption,
    QuietOption,
    StartTimeoutOption,
    VariantOption,
    VerboseOption,
    VersionOption,
    with_server_options,
)
from enginehouse.core.errors import ConfigurationError
from enginehouse.evaluation import require_headlines
from enginehouse.launch.configuration import EvaluationConfig, merged, parse, read_yaml
from enginehouse.launch.evaluating import resume_evaluation, run_evaluation
from enginehouse.report.live import progress_display
from enginehouse.report.summary import Report
from enginehouse.report.terminal import make_console, print_report
from enginehouse.store.layout import Layout


@with_server_options
def evaluate(  # noqa: PLR0913 (each parameter is an option)
    model: ModelArgument = None,
    *,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", "-t", help="A task's name, or the path of a task's YAML; repeat it."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items of each task, a seeded choice.")] = None,
    samples: Annotated[int | None, typer.Option(help="How often each item is asked.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides items, order and sampling.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 (the default) is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling; 1 is off.")] = None,
    top_k: Annotated[int | None, typer.Option(help="The k most likely tokens; 0 is off.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="The longest answer instead of each task's own.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data for the (only) task: a file, or hf:owner/name:file."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests in flight; otherwise what the queue allows.")
    ] = None,
    max_failed: Annotated[
        float | None, typer.Option(help="Share of failed samples without a headline (0.01).")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Use a running server and leave it running.")
    ] = None,
    config: ConfigOption = None,
    path: PathOption = None,
    engine: EngineOption = None,
    python: PythonOption = None,
    version: VersionOption = None,
    variant: VariantOption = None,
    start_timeout: StartTimeoutOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    server: dict[str, Any],
) -> None:
    """Evaluate a model on tasks: serve it, ask, score, report, stop the server."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    given = {
        name: value
        for name, value in locals().items()
        if name in EvaluationConfig.model_fields and value is not None
    }
    given["tasks"] = _tasks(task, data)
    values = merged(read_yaml(config) if config else {}, given)
    if not values.get("tasks"):
        raise ConfigurationError(
            "there is no task to evaluate",
            fix="name one with --task, several by repeating it; `enginehouse tasks` lists them",
        )
    origin = str(config) if config else "the command line"
    settings = parse(EvaluationConfig, values, origin=origin)
    with progress_display(make_console(sys.stderr), sys.stderr) as display:
        report = run_async(
            run_evaluation(
                settings,
                layout=Layout.from_environment(),
                notify=console.note,
                progress=(lambda _: None) if quiet else display,
            )
        )
    _finish(report, console)


def resume(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or its folder.")],
    *,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask the failed samples again.")
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask exactly what a run has not asked yet, score it, and report."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    with progress_display(make_console(sys.stderr), sys.stderr) as display:
        report = run_async(
            resume_evaluation(
                run,
                layout=Layout.from_environment(),
                notify=console.note,
                progress=(lambda _: None) if quiet else display,
                retry_failed=retry_failed,
            )
        )
    _finish(report, console)


def _tasks(names: list[str] | None, data: str | None) -> list[dict[str, str]] | None:
    if data is not None and len(names or ()) != 1:
        raise ConfigurationError(
            "--data needs exactly one --task",
            fix="with several tasks, give each its data in a --config file",
        )
    return [{"name": n} | ({"data": data} if data else {}) for n in names] if names else None


def _finish(report: Report, console: Console) -> None:
    console.result(report, text=lambda: print_report(report))
    require_headlines(report)
