"""enginehouse ps, logs, stop."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import JsonOption
from enginehouse.report.visible_text import write_plain, write_text
from enginehouse.store.layout import Layout

if TYPE_CHECKING:
    from enginehouse.servers.records import ServerRecord

NameArgument = Annotated[str, typer.Argument(help="A server's name, as `enginehouse ps` lists it.")]


def ps(
    *,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Include stopped servers whose logs are still kept.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the servers that were started on this machine, and their state."""
    from enginehouse.report.terminal import print_rows
    from enginehouse.servers.server import survey

    console = Console(json=json)
    servers = run_async(survey(Layout.from_environment(), ended=every))

    def text() -> None:
        if not servers:
            console.note("no servers; `enginehouse serve MODEL --detach` starts one")
            return
        rows = [
            (
                status.record.name,
                status.state.value + (" (abandoned)" if status.abandoned else ""),
                status.record.base_url,
                str(status.record.process.pid),
                status.record.model,
            )
            for status in servers
        ]
        print_rows(("server", "state", "url", "pid", "model"), rows)
        for status in servers:
            if keys := _keys(status.record):
                console.note(f"{status.record.name}: {keys}")

    console.result(servers, text=text)


def _keys(record: ServerRecord) -> str:
    """Which keys curl or an OpenAI client needs."""
    keys = []
    if record.has_api_key:
        keys.append(
            "requests need the API key the server was started with (Authorization: Bearer KEY; "
            "api_key in OpenAI's clients)"
        )
    if record.key_file is not None and record.key_file.exists():
        keys.append(f"loading adapters and replacing weights needs the key in {record.key_file}")
    return "; ".join(keys)


def logs(
    name: NameArgument,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new lines until Ctrl-C.")
    ] = False,
) -> None:
    """Print a server's log. On a terminal, its control characters are escaped."""
    write = write_text if sys.stdout.isatty() else write_plain
    from enginehouse.servers.records import find_server

    path = find_server(name, layout=Layout.from_environment(), ended=True).log
    with path.open(errors="replace") as log:
        while True:
            if text := log.read(1 << 16):
                write(sys.stdout, text)
                continue
            if not follow:
                return
            time.sleep(0.3)


def stop(name: NameArgument) -> None:
    """Stop a server, and wait until its processes have ended and its port is free."""
    from enginehouse.servers.stopping import stop_server

    run_async(stop_server(name, layout=Layout.from_environment()))
    Console().note(f"stopped {name}: no process is left, its port is free")
