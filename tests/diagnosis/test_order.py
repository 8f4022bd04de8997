"""Logs with the newest line first are turned round, and no others."""

from __future__ import annotations

import io

from enginehouse.diagnosis.order import oldest_first
from enginehouse.diagnosis.reading import explain_log
from enginehouse.engines.sglang.engine import SglangEngine
from enginehouse.engines.vllm.engine import VllmEngine

FRAMES = [
    "Traceback (most recent call last):",
    '  File "/env/sglang/srt/server.py", line 9, in f',
    "    g()",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
]


def stamped(lines: list[str]) -> list[str]:
    """Each line with a second of its own."""
    return [f"2026-03-01T10:00:{n:02}Z {line}" for n, line in enumerate(lines)]


def test_a_log_whose_every_line_has_its_time():
    """Line by line, as a cloud's console writes it."""
    lines = stamped(["starting", *FRAMES, "ended"])
    assert list(oldest_first(reversed(lines))) == lines


def test_a_log_in_order_stays_as_it_is():
    """Also where one clock is a little behind another, or a server was started twice."""
    lines = stamped(["starting", *FRAMES, "ended"])
    mixed = [*lines, *lines, lines[2], lines[1], lines[5]]
    assert list(oldest_first(mixed)) == mixed


def test_too_few_steps_back_say_nothing():
    """Two lines out of order are not an order."""
    lines = stamped(["a", "b", "c"])
    assert list(oldest_first(reversed(lines))) == lines[::-1]


def test_entries_of_several_lines_keep_their_own_order():
    """Newest entry first, each entry as it was written."""
    entries = [["10:00:01 a"], ["10:00:02 error", *FRAMES], ["10:00:03 c"], ["10:00:04 d"]]
    reversed_entries = [line for entry in reversed(entries) for line in entry]
    assert list(oldest_first(reversed_entries)) == [line for entry in entries for line in entry]


def test_tracebacks_on_their_heads_are_enough():
    """Where there are no times at all."""
    lines = ["starting", *FRAMES, "ended"]
    assert list(oldest_first(reversed(lines))) == lines
    assert list(oldest_first(lines)) == lines


def test_a_reversed_log_is_explained():
    """With the level that a cloud gives to all that went to stderr."""
    lines = [
        f"ERROR 2026-03-01T10:00:{n:02}.123456789Z {line}"
        for n, line in enumerate(["sglang.launch_server starts", *FRAMES, "Received sigquit"])
    ]
    found = explain_log(
        io.BytesIO("\n".join(reversed(lines)).encode()),
        profiles=[VllmEngine().log_profile, SglangEngine().log_profile],
        otherwise=VllmEngine().log_profile,
        exit_code=None,
    )
    assert found.engine == "sglang"
    assert found.diagnosis is not None
    assert found.diagnosis.kind == "out_of_memory"
