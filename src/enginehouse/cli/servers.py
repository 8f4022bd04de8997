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

NameArgument = Annotated[str, typer.Argument(help="A name that `enginehouse ps` lists.")]


def ps(
    *,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Stopped servers, too, as long as logs are kept.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the servers that were started here, and whether they work."""
    from enginehouse.report.terminal import print_rows
    from enginehouse.servers.server import survey

    console = Console(json=json)

    found = run_async(survey(Layout.from_environment(), ended=every))
    if json:
        console.data(found)
    elif found:
        rows = [
            (
                s.record.name,
                s.state.value + (" (abandoned)" if s.abandoned else ""),
                s.record.base_url,
                str(s.record.process.pid),
                s.record.model,
            )
            for s in found
        ]
        print_rows(("server", "state", "url", "pid", "model"), rows)
        for status in found:
            if said := _about_key(status.record):
                console.note(f"{status.record.name}: {said}")
    else:
        console.note("no servers; `enginehouse serve MODEL --detach` starts one")


def _about_key(record: ServerRecord) -> str | None:
    """What somebody must know who asks the server with curl or an OpenAI client."""
    said = []
    if record.has_api_key:
        said.append(
            "requests must carry the API key that it was started with (Authorization: Bearer KEY; "
            "api_key in OpenAI's clients)"
        )
    if record.key_file is not None and record.key_file.exists():
        said.append(f"loading adapters and replacing weights needs the key in {record.key_file}")
    return "; ".join(said) or None


def logs(
    name: NameArgument,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Print a server's log. On a terminal, control characters in it are shown, not obeyed."""
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
    """Stop a server; returns when no process of it is alive and its port is free."""
    from enginehouse.servers.server import stop_server

    run_async(stop_server(name, layout=Layout.from_environment()))
    Console().note(f"stopped {name}: no process left, port free")
