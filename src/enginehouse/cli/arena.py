"""enginehouse arena serve."""

from __future__ import annotations

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import Given, with_config_options
from enginehouse.commands.configuration import ServiceConfig
from enginehouse.runtime.context import Context

arena = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@arena.command()
@with_config_options(ServiceConfig)
def serve(*, given: Given[ServiceConfig], console: Console) -> None:
    """Let a model decide for the agents of Agent Arena's Godot scenes, until Ctrl-C."""
    config = given.settings()

    def ready(url: str) -> None:
        console.result({"url": url}, text=lambda: _announce(url, console))

    from enginehouse.facades.agent_arena.service import serve_until_stopped

    run_async(serve_until_stopped(config, Context(notify=console.note), ready=ready))


def _announce(url: str, console: Console) -> None:
    console.say(f"url:  {url}")
    console.say(f"try:  curl {url}/health")
    console.say("stop: Ctrl-C")


@arena.callback()
def _group() -> None:
    """Agent Arena's scenes."""
