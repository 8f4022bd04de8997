"""enginehouse serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import (
    ConfigOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    with_config_options,
)
from enginehouse.deployment.configuration import ServeConfig, merged, parse, read_yaml
from enginehouse.runtime.context import Context

if TYPE_CHECKING:
    from enginehouse.servers.server import Server


@with_config_options(ServeConfig)
def serve(
    *,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Leave it running; `enginehouse stop` ends it.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="What ps, logs and stop call it.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any],
) -> None:
    """Serve a model until Ctrl-C, or detached."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    values = merged(read_yaml(config) if config else {}, given)
    settings = parse(ServeConfig, values, origin=str(config or "the command line"))

    def ready(found: Server) -> None:
        facts = {
            "url": found.base_url,
            "models": found.models,
            "name": found.name,
            "pid": found.pid,
            "key_file": str(found.key_file) if found.key_file else None,
        }
        console.result(facts, text=lambda: _announce(found, console, detached=detach))

    from enginehouse.commands.serve import serve_detached, serve_until_stopped

    work = serve_detached if detach else serve_until_stopped
    run_async(work(settings, Context(notify=console.note), name=name, ready=ready))


def _announce(server: Server, console: Console, *, detached: bool) -> None:
    end = f"enginehouse stop {server.name}" if detached else "Ctrl-C"
    console.say(f"url:    {server.base_url}/v1")
    console.say(f"models: {', '.join(server.models)}")
    from enginehouse.servers.server import curl_line

    console.say(f"try:    {curl_line(server)}")
    console.say(f"stop:   {end}")
    if server.api_key:
        console.say("key:    every request must carry the server's API key, as in the line above")
    if server.key_file is not None:
        console.say(
            f"admin:  loading adapters and replacing weights needs the key in {server.key_file}; "
            "enginehouse's own commands read it"
        )
