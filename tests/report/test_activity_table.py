from __future__ import annotations

import io
from typing import Any

import msgspec

from enginehouse.report.activity_table import render_activity
from enginehouse.report.terminal import make_console
from enginehouse.results.activity import Activity, GpuReading, ServerActivity

GIB = 1 << 30
GPU = GpuReading(
    index=0, uuid="GPU-0", name="NVIDIA H200", used_bytes=70 * GIB, total_bytes=141 * GIB, load=0.5
)
BUSY = ServerActivity(
    name="mine",
    url="http://127.0.0.1:20000",
    state="ready",
    running=12,
    waiting=3,
    kv_cache_usage=0.42,
    prompt_tokens_per_second=12345.6,
    output_tokens_per_second=789.4,
    preemptions=0,
    prefix_cache_hits=0.25,
    processes=2,
    cpu=1.5,
    rss_bytes=3 * GIB,
    gpu_bytes=69 * GIB,
)
SILENT = ServerActivity(
    name=None, url="http://10.0.0.1:8000", state="degraded", problem="/health does not answer"
)


def shown(*servers: ServerActivity, gpus: tuple[GpuReading, ...] = ()) -> list[Any]:
    """The lines of a wide terminal, each as its words."""
    file = io.StringIO()
    console = make_console(file)
    console.width = 160
    console.print(render_activity(Activity(at=0.0, servers=servers, gpus=gpus)))
    return [line.split() for line in file.getvalue().splitlines()]


def test_a_server_is_a_line():
    """Queue, cache, rates, processor and memory; what is unknown is a dash."""
    lines = shown(BUSY, SILENT)
    figures = ["12", "3", "42%", "25%", "12,346", "789", "150%", "3.0", "GiB"]
    assert ["mine", "ready", *figures] in lines
    assert ["10.0.0.1:8000", "degraded", *["-"] * 8] in lines
    assert ["http://10.0.0.1:8000:", "/health", "does", "not", "answer"] in lines


def test_gpus_are_shown_where_there_are_any():
    """Each GPU has a line, and each server a column more."""
    lines = shown(BUSY, SILENT, gpus=(GPU,))
    assert next(line for line in lines if line[:1] == ["mine"])[-2:] == ["69.0", "GiB"]
    assert ["0", "NVIDIA", "H200", "50%", "70.0", "GiB", "141.0", "GiB"] in lines
    assert not any("GPU" in line for line in shown(BUSY))


def test_no_server():
    """The next step, and the GPUs all the same."""
    lines = shown(gpus=(GPU,))
    assert [
        "no",
        "servers;",
        "`enginehouse",
        "serve",
        "MODEL",
        "--detach`",
        "starts",
        "one",
    ] in lines
    assert any("H200" in line for line in lines)


def test_markup_in_a_name_is_text():
    """A server's address or problem is shown as it is."""
    odd = msgspec.structs.replace(SILENT, problem="[bold]not markup[/bold]")
    assert ["http://10.0.0.1:8000:", "[bold]not", "markup[/bold]"] in shown(odd)
