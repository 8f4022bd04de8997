"""enginehouse top."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console, Interrupted, run_async
from enginehouse.cli.options import JsonOption, finite
from enginehouse.report.visible_text import visible_json, write_plain
from enginehouse.store.layout import Layout

if TYPE_CHECKING:
    from enginehouse.results.activity import Activity

UrlOption = Annotated[
    list[str] | None,
    typer.Option("--url", help="A server that Enginehouse did not start; can be repeated."),
]


def top(
    *,
    url: UrlOption = None,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            "-i",
            min=0.1,
            callback=finite,
            help="Seconds between two readings.",
        ),
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one reading, over one interval, and exit.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Watch every server's queue, KV cache, tokens/s, memory and GPUs until Ctrl-C.

    Without a terminal, a reading is printed every interval. With --json, each reading is a line.
    """
    try:
        run_async(_watch(tuple(url or ()), interval=interval, once=once, json=json))
    except Interrupted as interruption:
        if interruption.number != signal.SIGINT:
            raise


async def _watch(urls: tuple[str, ...], *, interval: float, once: bool, json: bool) -> None:
    import asyncio

    from enginehouse.report.activity_table import print_activity
    from enginehouse.servers.observer import Observer

    async with Observer(Layout.from_environment(), urls=urls) as observer:
        activity = await observer.look()
        if once:
            await asyncio.sleep(interval)
            activity = await observer.look()
            Console(json=json).result(activity, text=lambda: print_activity(activity))
            return
        with _display(json=json) as show:
            while True:
                show(activity)
                await asyncio.sleep(interval)
                activity = await observer.look()


@contextmanager
def _display(*, json: bool) -> Iterator[Callable[[Activity], None]]:
    """What shows a reading: on the whole screen of a terminal, elsewhere below the last one."""
    import msgspec
    from rich.live import Live

    from enginehouse.report.activity_table import print_activity, render_activity
    from enginehouse.report.terminal import make_console, redraws

    def print_line(activity: Activity) -> None:
        line = msgspec.json.encode(activity).decode()
        write_plain(sys.stdout, visible_json(line) + "\n")

    console = make_console(sys.stdout)
    if json:
        yield print_line
    elif redraws(console):
        with Live(console=console, screen=True, auto_refresh=False) as live:
            yield lambda activity: live.update(render_activity(activity), refresh=True)
    else:
        yield print_activity
