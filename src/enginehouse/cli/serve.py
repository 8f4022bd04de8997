"""enginehouse serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import Given, with_config_options
from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.runtime.context import Context

if TYPE_CHECKING:
    from enginehouse.servers.endpoint import Server


@with_config_options(ServeConfig)
def serve(
    *,
    detach: Annotated[
        bool,
        typer.Option("--detach", "-d", help="Serve in the background until `enginehouse stop`."),
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="The server's name for ps, logs and stop.")
    ] = None,
    announce: Annotated[
        Path | None,
        typer.Option(
            "--announce",
            metavar="FOLDER",
            help="Publish the server's address in FOLDER, where clients with `addresses: FOLDER` "
            "find it.",
        ),
    ] = None,
    remain: Annotated[
        bool,
        typer.Option(
            "--remain",
            help="With --announce: keep this command running after its server is given up, so "
            "that the other servers continue.",
        ),
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="HOST",
            help="Run this machine's part of a server that spans several machines; HOST is the "
            "first.",
        ),
    ] = None,
    node: Annotated[
        int,
        typer.Option(
            "--node", min=1, help="With --head: this machine's number, from 1; HOST is 0."
        ),
    ] = 1,
    given: Given[ServeConfig],
    console: Console,
) -> None:
    """Serve a model until Ctrl-C, or in the background."""
    settings = given.settings()

    def ready(server: Server) -> None:
        facts = {
            "url": server.base_url,
            "models": server.models,
            "name": server.name,
            "pid": server.pid,
            "key_file": str(server.key_file) if server.key_file else None,
        }
        console.result(facts, text=lambda: _announce(server, console, detached=detach))

    from enginehouse.commands.serve import serve_detached, serve_until_stopped, serve_worker

    context = Context(notify=console.note)
    if detach and announce is not None:
        raise ConfigurationError(
            "a detached server cannot be announced",
            why="nothing would remove the announcement when the server stops",
            fix="remove --detach",
        )
    if remain and announce is None:
        raise ConfigurationError(
            "--remain needs an announced server",
            why="only announced servers have peers that can take over",
            fix="remove --remain, or add --announce FOLDER",
        )
    if head is not None:
        if detach or announce is not None:
            raise ConfigurationError(
                "a part of a server can be neither detached nor announced",
                why="it stops with the server, and answers no requests itself",
                fix="remove --detach and --announce",
            )
        run_async(serve_worker(settings, context, head=head, node=node))
    elif detach:
        run_async(serve_detached(settings, context, name=name, ready=ready))
    else:
        serving = serve_until_stopped(
            settings, context, name=name, ready=ready, announce=announce, remain=remain
        )
        run_async(serving)


def _announce(server: Server, console: Console, *, detached: bool) -> None:
    end = f"enginehouse stop {server.name}" if detached else "Ctrl-C"
    console.say(f"url:    {server.base_url}/v1")
    console.say(f"models: {', '.join(server.models)}")
    from enginehouse.servers.endpoint import curl_line

    console.say(f"try:    {curl_line(server)}")
    console.say(f"stop:   {end}")
    if server.api_key:
        console.say("key:    every request needs the server's API key, as in the line above")
    if server.key_file is not None:
        console.say(
            f"admin:  loading adapters and replacing weights needs the key in {server.key_file}, "
            "which enginehouse's own commands read"
        )
