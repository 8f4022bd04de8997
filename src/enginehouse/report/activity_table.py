"""What `enginehouse top` shows."""

from __future__ import annotations

import sys
import time

from rich.console import Group, RenderableType
from rich.text import Text

from enginehouse.report.terminal import make_console, make_table
from enginehouse.results.activity import Activity, GpuReading

_UNKNOWN = "-"
_STYLES = {"ready": "green", "starting": "cyan", "degraded": "yellow", "failed": "red"}
_COLUMNS = (
    "server",
    "state",
    "run",
    "wait",
    "KV",
    "hits",
    "in tok/s",
    "out tok/s",
    "CPU",
    "RSS",
)


def print_activity(activity: Activity) -> None:
    """Print a reading to standard output."""
    make_console(sys.stdout).print(render_activity(activity))


def render_activity(activity: Activity) -> RenderableType:
    """The time, a table of servers, what is wrong with them, and a table of any GPUs."""
    parts: list[RenderableType] = [Text(time.strftime("%H:%M:%S", time.localtime(activity.at)))]
    if activity.servers:
        columns = [*_COLUMNS, "GPU"] if activity.gpus else list(_COLUMNS)
        table = make_table(*columns, right=range(2, len(columns)))
        table.columns[0].no_wrap = True
        for server in activity.servers:
            cells = [
                _number(server.running),
                _number(server.waiting),
                _share(server.kv_cache_usage),
                _share(server.prefix_cache_hits),
                _number(server.prompt_tokens_per_second),
                _number(server.output_tokens_per_second),
                _share(server.cpu),
                _bytes(server.rss_bytes),
            ]
            if activity.gpus:
                cells.append(_bytes(server.gpu_bytes))
            table.add_row(
                Text(server.name or server.url.partition("://")[2]),
                Text(server.state, style=_STYLES.get(server.state, "")),
                *map(Text, cells),
            )
        parts.append(table)
    else:
        parts.append(Text("no servers; `enginehouse serve MODEL --detach` starts one"))
    parts += [
        Text(f"{server.name or server.url}: {server.problem}", style="yellow")
        for server in activity.servers
        if server.problem
    ]
    if activity.gpus:
        parts += [Text(), _gpus(activity.gpus)]
    return Group(*parts)


def _gpus(gpus: tuple[GpuReading, ...]) -> RenderableType:
    table = make_table("GPU", "name", "load", "memory", "of", right=(2, 3, 4))
    for gpu in gpus:
        memory = (_bytes(gpu.used_bytes), _bytes(gpu.total_bytes))
        table.add_row(*map(Text, (str(gpu.index), gpu.name, _share(gpu.load), *memory)))
    return table


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0%}"


def _bytes(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value / 2**30:,.1f} GiB"
