"""The table of commands. Only the command that is called is imported, so --help stays quick."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from enginehouse.core.registry import load_object


@dataclass(frozen=True)
class CommandEntry:
    """A command (or group of commands) and what the list of commands says about it."""

    target: str
    help: str


COMMANDS = {
    "eval": CommandEntry("enginehouse.cli.evaluate:evaluate", "Evaluate a model on tasks."),
    "resume": CommandEntry("enginehouse.cli.evaluate:resume", "Ask what a run has not asked yet."),
    "rescore": CommandEntry(
        "enginehouse.cli.evaluate:rescore", "Score a run's answers again; nothing is asked."
    ),
    "runs": CommandEntry("enginehouse.cli.runs:runs", "List evaluation runs."),
    "show": CommandEntry(
        "enginehouse.cli.runs:show", "Show a run's report, or one of its samples."
    ),
    "compare": CommandEntry(
        "enginehouse.cli.compare:compare", "Compare two runs on the same items."
    ),
    "watch": CommandEntry(
        "enginehouse.cli.watch:watch", "Evaluate checkpoints and adapters as they appear."
    ),
    "tasks": CommandEntry("enginehouse.cli.tasks:tasks", "List the tasks and what they need."),
    "serve": CommandEntry(
        "enginehouse.cli.serve:serve", "Serve a model until Ctrl-C, or detached."
    ),
    "ps": CommandEntry("enginehouse.cli.servers:ps", "List servers."),
    "logs": CommandEntry("enginehouse.cli.servers:logs", "Print a server's log."),
    "stop": CommandEntry("enginehouse.cli.servers:stop", "Stop a server and prove it."),
    "adapters": CommandEntry(
        "enginehouse.cli.adapters:adapters", "Load, list, unload, verify a server's adapters."
    ),
    "weights": CommandEntry(
        "enginehouse.cli.weights:weights", "Swap a running server's weights; say which it has."
    ),
    "top": CommandEntry("enginehouse.cli.top:top", "Watch what every server does."),
    "bench": CommandEntry("enginehouse.cli.bench:bench", "Measure a server under load."),
    "check": CommandEntry(
        "enginehouse.cli.check:check", "Try everything that a server should do, once."
    ),
    "parity": CommandEntry(
        "enginehouse.cli.parity:parity",
        "Compare the engine's log-probabilities with transformers'.",
    ),
    "chat": CommandEntry("enginehouse.cli.chat:chat", "Talk to a model in the terminal."),
    "sample": CommandEntry("enginehouse.cli.sample:sample", "Sample answers to a file of prompts."),
    "engines": CommandEntry("enginehouse.cli.engines:engines", "List what each engine can do."),
    "install": CommandEntry("enginehouse.cli.install:install", "Build an engine environment."),
    "doctor": CommandEntry(
        "enginehouse.cli.doctor:doctor", "Check this machine before anything fails."
    ),
    "diagnose": CommandEntry(
        "enginehouse.cli.diagnose:diagnose", "Say from an engine's log why it failed."
    ),
    "envs": CommandEntry("enginehouse.cli.install:envs", "List or remove engine environments."),
}


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The application; of its commands, only the one that `arguments` call is really there."""
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Runs LLM inference engines and evaluates the models they serve.",
        epilog="Exit codes and errors: docs/errors.md",
    )
    app.callback()(_options)
    called = next((a for a in arguments if not a.startswith("-")), None)
    completing = "_ENGINEHOUSE_COMPLETE" in os.environ
    for name, entry in COMMANDS.items():
        command = load_object(entry.target) if completing or name == called else _stub
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, help=entry.help)
        else:
            app.command(name, help=entry.help)(command)
    return app


def _stub() -> None:
    """Stand for a command that was not called."""


def _print_version(wanted: bool) -> None:  # noqa: FBT001 (typer calls it)
    if wanted:
        from importlib.metadata import version

        typer.echo(f"enginehouse {version('enginehouse')}")
        raise typer.Exit


def _options(
    *,
    version: bool = typer.Option(
        False, "--version", help="Print the version.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Take the options that stand before a command."""
