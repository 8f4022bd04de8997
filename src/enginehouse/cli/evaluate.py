"""enginehouse eval, enginehouse resume."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import (
    ConfigOption,
    JsonOption,
    QuietOption,
    TrustOption,
    VerboseOption,
    with_config_options,
)
from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import merged, parse, read_yaml, with_task_paths
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

if TYPE_CHECKING:
    from enginehouse.commands.evaluate_together import Together
    from enginehouse.results.summary import Report


@with_config_options(EvaluationConfig)
def evaluate(
    *,
    more: Annotated[
        list[str] | None,
        typer.Argument(help="More of them, evaluated by the same server: MODEL+FOLDER …"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data for the only task: a file, or hf:owner/name:file.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any],
) -> None:
    """Evaluate a model on tasks: serve it, ask, score, report, stop the server."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    values = values_given(given, config=config, data=data)
    origin = str(config or "the command line")
    settings = parse(EvaluationConfig, values, origin=origin)
    from enginehouse.commands.evaluate import run_evaluation

    if not more:
        _carry_out(partial(run_evaluation, settings), console)
        return
    others = [parse(EvaluationConfig, values | {"model": m}, origin=origin) for m in more]
    _carry_out_together([settings, *others], console)


def values_given(given: dict[str, Any], *, config: Path | None, data: str | None) -> dict[str, Any]:
    """What the options and the file say together, options first. Demands a task of either."""
    given["tasks"] = _tasks(given.get("tasks"), data)
    told = with_task_paths(read_yaml(config), folder=config.parent) if config else {}
    values = merged(told, given)
    if not config and not values.get("tasks"):
        raise ConfigurationError(
            "there is no task to evaluate",
            fix="name one with --task, several by repeating it; `enginehouse tasks` lists them",
        )
    _override_tasks(values, given)
    return values


def _carry_out_together(configs: list[EvaluationConfig], console: Console) -> None:
    from enginehouse.commands.evaluate_together import run_together
    from enginehouse.evaluation import require_headlines
    from enginehouse.report.live import progress_display
    from enginehouse.report.terminal import make_console

    with progress_display(make_console(sys.stderr), sys.stderr) as display:
        together = run_async(
            run_together(
                configs,
                Context(notify=console.note),
                progress=(lambda _: None) if console.quiet else display,
            )
        )
    console.result(together, text=lambda: _print(together))

    for report in together.reports:
        require_headlines(report)


def _print(together: Together) -> None:
    from enginehouse.report.comparison_table import print_comparison
    from enginehouse.report.terminal import print_report

    for report in together.reports:
        print_report(report)

    for comparison in together.comparisons:
        print_comparison(comparison)


def resume(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or its folder.")],
    *,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask the failed samples again.")
    ] = False,
    trust_run: TrustOption = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask exactly what a run has not asked yet, score it, and report."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    trust = trust_run or _trusted_on_terminal(run, console)
    from enginehouse.commands.evaluate import resume_evaluation

    _carry_out(partial(resume_evaluation, run, retry_failed=retry_failed, trust=trust), console)


def rescore(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or its folder.")],
    *,
    trust_run: TrustOption = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a run's answers again by its tasks as they are now, and say what changed.

    Nothing is asked. The scores before stay in the journal.
    """
    console = Console(json=json, verbose=verbose, quiet=quiet)
    trust = trust_run or _trusted_on_terminal(run, console)
    from enginehouse.commands.evaluate import rescore_evaluation
    from enginehouse.evaluation import require_headlines
    from enginehouse.report.live import progress_display
    from enginehouse.report.rescoring_table import print_rescoring
    from enginehouse.report.terminal import make_console

    with progress_display(make_console(sys.stderr), sys.stderr) as display:
        rescoring = run_async(
            rescore_evaluation(
                run,
                Context(notify=console.note),
                progress=(lambda _: None) if console.quiet else display,
                trust=trust,
            )
        )

    console.result(rescoring, text=lambda: print_rescoring(rescoring))

    require_headlines(rescoring.report)


def _trusted_on_terminal(run: str, console: Console) -> bool:
    """Ask whether somebody else's run may do what it says, where there is a terminal to ask on."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        return False
    from enginehouse.commands.foreign_runs import untrusted_settings

    settings = untrusted_settings(run, layout=Layout.from_environment())
    if not settings:
        return False
    for line in ("this run is somebody else's, and its configuration says:", *settings):
        Console(verbose=console.verbose).note(line)
    return typer.confirm("Do you trust it?", err=True)


def _override_tasks(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Let an option win over what the file says of a single task, too."""
    tasks = values.get("tasks")
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, dict):
            for name in ("limit", "samples", "max_tokens"):
                if name in given:
                    task.pop(name, None)


def _tasks(names: list[str] | None, data: str | None) -> list[dict[str, str]] | None:
    if data is not None and len(names or ()) != 1:
        raise ConfigurationError(
            "--data needs exactly one --task",
            fix="with several tasks, give each its data in a --config file",
        )
    return [{"name": n} | ({"data": data} if data else {}) for n in names] if names else None


def _carry_out(work: Callable[..., Coroutine[Any, Any, Report]], console: Console) -> None:
    from enginehouse.evaluation import require_headlines
    from enginehouse.report.live import progress_display
    from enginehouse.report.terminal import make_console, print_report

    with progress_display(make_console(sys.stderr), sys.stderr) as display:
        report = run_async(
            work(
                Context(notify=console.note),
                progress=(lambda _: None) if console.quiet else display,
            )
        )

    console.result(report, text=lambda: print_report(report))

    require_headlines(report)
