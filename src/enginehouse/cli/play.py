"""enginehouse play FILE, play --list, play analyze, play export."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from enginehouse.cli import play_reports
from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import JsonOption, QuietOption, VerboseOption
from enginehouse.core.errors import ConfigurationError, NoHeadlineError, nearest
from enginehouse.runtime.context import Context

if TYPE_CHECKING:
    from enginehouse.commands.experiment_configuration import ExperimentConfig
    from enginehouse.games.base import GameInfo
    from enginehouse.results.experiment import ExperimentReport
    from enginehouse.results.experiment_progress import ExperimentProgress


class _PlayGroup(TyperGroup):
    """`play FILE` is short for `play run FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        word = args[0] if args else "--help"
        if word not in self.commands and word != "--help":
            close = nearest(word, self.commands)
            if close and not Path(word).exists():
                raise ConfigurationError(
                    f"there is no file {word}", fix=f"did you mean enginehouse play {close}?"
                )
            args = ["run", *args]
        return super().parse_args(ctx, args)


play = typer.Typer(
    cls=_PlayGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="`enginehouse play FILE` is short for `enginehouse play run FILE`.",
)


@play.command()
def run(  # noqa: PLR0913 - one for each option
    file: Annotated[
        Path | None, typer.Argument(help="The experiment's YAML file; see docs/experiments.md.")
    ] = None,
    *,
    list_games: Annotated[bool, typer.Option("--list", help="List the games instead.")] = False,
    num_games: Annotated[
        int | None, typer.Option("--num-games", help="Matches of each pairing.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Determines each match's seed.")
    ] = None,
    seats: Annotated[
        str | None,
        typer.Option("--seats", help="fixed, or paired: swap seats, too, on the same seeds."),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="Start the servers that are not running, and stop them afterwards."
        ),
    ] = False,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="The most requests in flight per server.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", help="A folder that the results are copied to."),
    ] = None,
    cassette: Annotated[
        str | None,
        typer.Option(
            "--cassette",
            help="A run to replay: its answers are reused while the model and prompts match.",
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Send no requests: use answers from the cassette only."),
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Play the matches of an experiment, many at once, and report.

    `enginehouse play FILE` is short for `enginehouse play run FILE`. An interrupted experiment is
    continued by `enginehouse resume RUN`.
    """
    console = Console(json=json, verbose=verbose, quiet=quiet)
    if list_games:
        _list_games(console)
        return
    if file is None:
        raise ConfigurationError(
            "there is no experiment to play",
            fix="name its YAML file, such as examples/red_black.yaml; docs/experiments.md explains "
            "it, and `enginehouse play --list` lists the games",
        )
    if not file.exists():
        raise ConfigurationError(f"there is no file {file}", fix="check the path")
    from enginehouse.cli.person import Person
    from enginehouse.commands.experiment_configuration import ExperimentConfig
    from enginehouse.commands.play import run_experiment
    from enginehouse.deployment.configuration import merged, parse, read_yaml

    options = {
        "num_games": num_games,
        "seed": seed,
        "seats": seats,
        "serve": serve or None,
        "concurrency": concurrency,
        "output_dir": output_dir,
        "cassette": cassette,
        "offline": offline or None,
    }
    values = merged({"experiment_name": file.stem}, merged(read_yaml(file), options))
    config = parse(ExperimentConfig, values, origin=str(file))
    with _progress(console, config) as progress:
        report = run_async(
            run_experiment(
                config,
                Context(notify=console.note),
                origin=str(file),
                human=Person(),
                progress=progress,
            )
        )
    show_experiment(report, console)


play.command()(play_reports.analyze)
play.command()(play_reports.export)


def resume_experiment(reference: str, console: Console, *, retry_failed: bool, trust: bool) -> None:
    """What `enginehouse resume` does with an experiment."""
    from enginehouse.cli.person import Person
    from enginehouse.commands.foreign_runs import read_experiment
    from enginehouse.commands.play import resume_experiment as resume
    from enginehouse.store.runs import open_run

    context = Context(notify=console.note)
    with _progress(console, read_experiment(open_run(context.layout, reference))) as progress:
        report = run_async(
            resume(
                reference,
                context,
                human=Person(),
                retry_failed=retry_failed,
                trust=trust,
                progress=progress,
            )
        )
    show_experiment(report, console)


def show_experiment(report: ExperimentReport, console: Console) -> None:
    """Print the report. Raises NoHeadlineError if every match failed."""
    from enginehouse.report.experiment_table import print_experiment

    console.result(report, text=lambda: print_experiment(report))
    if report.failures and not report.finished:
        first = report.failures[0]
        raise NoHeadlineError(
            "every match failed",
            why=f"{first.kind}: {first.example}",
            fix=f"correct the cause, then enginehouse resume {report.run} --retry-failed",
        )


@contextmanager
def _progress(
    console: Console, config: ExperimentConfig
) -> Iterator[Callable[[ExperimentProgress], None]]:
    """The progress display, unless a person needs the terminal to answer."""
    if config.has_humans:
        yield lambda _: None
        return
    with console.match_progress() as progress:
        yield progress


def _list_games(console: Console) -> None:
    from enginehouse.games.registry import list_games

    games = list_games(notify=console.note)
    console.result(games, text=lambda: _print_games(games))


def _print_games(games: Iterable[GameInfo]) -> None:
    """Print a paragraph per game."""
    from rich.padding import Padding
    from rich.text import Text

    from enginehouse.report.terminal import make_console

    console = make_console(sys.stdout)
    for game in games:
        seats = f"{game.least_seats}"
        if game.most_seats != game.least_seats:
            seats += f" to {game.most_seats}"
        kind = "teams that deliberate" if game.teams else "single agents"
        console.print(Text(game.name, style="bold") + Text(f"  {seats} seats for {kind}"))
        lines = [game.description, *(f"{m.name}: {m.description}" for m in game.measures)]
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
