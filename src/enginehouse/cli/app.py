"""The table of commands. Only the command that is called is imported, so --help stays quick."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand

from enginehouse.core.errors import ConfigurationError, FlagError
from enginehouse.core.registry import load_object


@dataclass(frozen=True)
class CommandEntry:
    """A command (or a group of commands), and how the list of commands describes it.

    `runs_another`: what follows `--` is a command line of its own.
    """

    target: str
    help: str
    runs_another: bool = False


COMMANDS = {
    "eval": CommandEntry("enginehouse.cli.evaluate:evaluate", "Evaluate a model on tasks."),
    "resume": CommandEntry("enginehouse.cli.evaluate:resume", "Continue an interrupted run."),
    "rescore": CommandEntry(
        "enginehouse.cli.evaluate:rescore", "Score a run's stored answers again."
    ),
    "runs": CommandEntry("enginehouse.cli.runs:runs", "List runs."),
    "show": CommandEntry(
        "enginehouse.cli.runs:show", "Show a run's report, or one of its samples."
    ),
    "compare": CommandEntry("enginehouse.cli.compare:compare", "Compare two runs item by item."),
    "gate": CommandEntry(
        "enginehouse.cli.gate:gate", "Judge a run against a baseline by a policy, for CI."
    ),
    "watch": CommandEntry(
        "enginehouse.cli.watch:watch", "Evaluate checkpoints and adapters as they appear."
    ),
    "launch": CommandEntry(
        "enginehouse.cli.launch:launch", "Launch evaluations as jobs, here or on a cluster."
    ),
    "tasks": CommandEntry(
        "enginehouse.cli.tasks:tasks", "List the tasks and what each of them needs."
    ),
    "play": CommandEntry("enginehouse.cli.play:play", "Play games between teams of agents."),
    "serve": CommandEntry(
        "enginehouse.cli.serve:serve", "Serve a model until Ctrl-C, or in the background."
    ),
    "gateway": CommandEntry(
        "enginehouse.cli.gateway:gateway",
        "Answer the OpenAI API in front of a model or a running server.",
    ),
    "run-with": CommandEntry(
        "enginehouse.cli.run_with:run_with",
        "Run any program with a model behind its OpenAI client.",
        runs_another=True,
    ),
    "ps": CommandEntry("enginehouse.cli.servers:ps", "List servers."),
    "logs": CommandEntry("enginehouse.cli.servers:logs", "Print a server's log."),
    "stop": CommandEntry("enginehouse.cli.servers:stop", "Stop a server."),
    "adapters": CommandEntry(
        "enginehouse.cli.adapters:adapters", "Load, list, unload or verify a server's adapters."
    ),
    "weights": CommandEntry("enginehouse.cli.weights:weights", "Swap, inspect or merge weights."),
    "top": CommandEntry("enginehouse.cli.top:top", "Watch the activity of every server."),
    "bench": CommandEntry("enginehouse.cli.bench:bench", "Measure a server under load."),
    "check": CommandEntry("enginehouse.cli.check:check", "Try every feature of a server once."),
    "parity": CommandEntry(
        "enginehouse.cli.parity:parity",
        "Compare an engine's log-probabilities with transformers'.",
    ),
    "chat": CommandEntry("enginehouse.cli.chat:chat", "Talk to a model in the terminal."),
    "sample": CommandEntry("enginehouse.cli.sample:sample", "Sample answers to a file of prompts."),
    "arena": CommandEntry(
        "enginehouse.cli.arena:arena", "Let a model play in Agent Arena's Godot scenes."
    ),
    "tinker": CommandEntry(
        "enginehouse.cli.tinker:tinker", "Train and sample LoRAs of many users: the Tinker service."
    ),
    "engines": CommandEntry("enginehouse.cli.engines:engines", "List what each engine can do."),
    "install": CommandEntry("enginehouse.cli.install:install", "Build an engine environment."),
    "doctor": CommandEntry("enginehouse.cli.doctor:doctor", "Check this machine for problems."),
    "diagnose": CommandEntry(
        "enginehouse.cli.diagnose:diagnose", "Explain from an engine's log why it failed."
    ),
    "envs": CommandEntry("enginehouse.cli.install:envs", "List or remove engine environments."),
}


class _Command(TyperCommand):
    """A command that explains an engine's flag which is given as an option but no longer exists."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {flag for option in self.params for flag in (*option.opts, *option.secondary_opts)}
        known.update(ctx.help_option_names)
        for flag in {argument.partition("=")[0] for argument in args} - known:
            if flag.startswith("--"):
                from enginehouse.engines.base import SupportsHistory
                from enginehouse.engines.registry import load_engine

                engine = load_engine()
                if isinstance(engine, SupportsHistory) and flag in engine.removed_flags:
                    fix = engine.removed_flags[flag]
                    raise FlagError(f"{engine.name} no longer has {flag}", fix=fix)
        return super().parse_args(ctx, args)


class _RunningAnother(_Command):
    """A command that runs another one; only what precedes `--` is parsed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own, dashes, command = args, "", []
        if "--" in args:
            place = args.index("--")
            own, dashes, command = args[:place], args[place], args[place + 1 :]
        rest = super().parse_args(ctx, own)
        if not dashes and not ctx.resilient_parsing and (words := ctx.params["program"]):
            words = " ".join(words)
            raise ConfigurationError(
                f"the command to run must follow `--`, but {words!r} does not",
                fix=f"enginehouse {ctx.info_name} … -- {words}",
            )
        ctx.params["program"] = command
        return rest


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The application. Of its commands, only the one that `arguments` call can be run."""
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Run LLM inference engines and evaluate the models they serve.",
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
            # A command's own help is longer: its docstring.
            text = entry.help if command is _stub else None
            kind = _RunningAnother if entry.runs_another else _Command
            app.command(name, help=text, cls=kind)(command)
    return app


def _stub() -> None:
    """Takes the place of a command that was not called."""


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
    """Take the options that precede a command."""
