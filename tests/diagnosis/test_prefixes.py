"""Prefixes are peeled in any order and number, and leave the indentation."""

from __future__ import annotations

import time

import pytest

from enginehouse.diagnosis.prefixes import peel

FRAME = '  File "/a.py", line 1, in f'
CORE = "EngineCore_DP0 pid=68"


@pytest.mark.parametrize(
    ("line", "process", "level"),
    [
        (f"({CORE}) ERROR 02-06 16:34:06 [core.py:936] {FRAME}", CORE, "ERROR"),
        (f"(APIServer pid=1) ({CORE}) ERROR 02-06 16:34:06 [v1/core.py:9] {FRAME}",
         f"APIServer pid=1 {CORE}", "ERROR"),
        (f"ERROR 11-25 08:17:34 multiproc_worker_utils.py:229] {FRAME}", "", "ERROR"),
        (f"2024-08-22 13:50:25 ERROR 200507 [worker_base.py:148] {FRAME}", "", "ERROR"),
        (f"(VllmWorker rank=1 pid=2) {FRAME}", "VllmWorker rank=1 pid=2", None),
        (f"(RayWorkerWrapper pid=7, ip=10.0.0.4) {FRAME}",
         "RayWorkerWrapper pid=7, ip=10.0.0.4", None),
        (f"[rank3]: {FRAME}", "rank3", None),
        (f"[2026-11-21 04:30:31 DP0 TP1] {FRAME}", "DP0 TP1", None),
        (f"2025-03-07 23:50:27,531 - app - INFO - [2025-03-07 23:50:27 TP0] {FRAME}", "TP0", None),
        (f"Aug 17 18:42:18 box vllm[8052]: {FRAME}", "", None),
        (f"2026-11-21T04:30:17.123456789Z stderr F {FRAME}", "", None),
        (f"vllm-1  | {FRAME}", "", None),
        (f"> {FRAME}", "", None),
        (f"  | [2025-03-10T15:07:20Z] ERROR 03-10 08:07:20 [core.py:9] {FRAME}", "", "ERROR"),
        (f"2024-11-18T16:43:45,497 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - {FRAME}",
         "W-9000-m_1.0-stdout", None),
        (f"E       {FRAME}", "", None),
        (f"3597\t({CORE}) {FRAME}", CORE, None),
        (f"[pod/vllm-0/engine] {FRAME}", "", None),
        (f"2: {FRAME}", "", None),
        (f'time=2025-05-01T16:40:14.182+02:00 level=ERROR source=a.go:1 msg="{FRAME}', "", "ERROR"),
        (f"[E1121 04:30:17.123 ProcessGroupNCCL.cpp:616] {FRAME}", "", "ERROR"),
        (f"0.00.045.620 E {FRAME}", "", "ERROR"),
        (f"CRITICAL 04-16 00:59:44 [core_client.py:361] {FRAME}", "", "CRITICAL"),
        (f"2025-01-01 00:00:00.000 | ERROR    | app:run:12 - {FRAME}", "", "ERROR"),
        (f"[INFO ] PyProcess - W-198-llava-stdout: {FRAME}", "W-198-llava", None),
        (f"INFO  PyProcess W-198-llava-stderr: {FRAME}", "W-198-llava", None),
        (FRAME, "", None),
    ],
)  # fmt: skip
def test_the_text_is_left(line: str, process: str, level: str | None):
    """With its indentation, by which a traceback is read."""
    found = peel(line)
    assert found.text == FRAME
    assert found.process == process
    assert found.level == level


@pytest.mark.parametrize(
    ("line", "native", "text"),
    [
        ("gpu:1:2 [3] misc/socket.cc:87 NCCL WARN Call failed", "NCCL", "Call failed"),
        (
            "[1746690477.974497] [a:1  :0]   ucp.c:12 UCX  ERROR no transports",
            "UCX",
            "no transports",
        ),
    ],
)
def test_native_code_is_told_apart(line: str, native: str, text: str):
    """NCCL and UCX write levels of their own."""
    found = peel(line)
    assert found.native == native
    assert found.text == text


@pytest.mark.parametrize(
    "job", ["run.sh: line 18:  2204 ", "/bin/bash: line 1:     7 ", "zsh: ", "[1]+  ", "[1]  2204 "]
)
@pytest.mark.parametrize("how", ["Killed  python -m vllm", "Illegal instruction     (core dumped)"])
def test_what_a_shell_says_of_a_job(job: str, how: str):
    """The signal is left, by which it ended."""
    assert peel(job + how).text == how


@pytest.mark.parametrize(
    "line",
    [
        "run.sh: line 18: Killed by hand",
        "zsh: command not found: vllm",
        "[1] Killed processes: 0",
        "Error: boom",
        "torch.OutOfMemoryError: CUDA",
        "(a plain remark) here",
        "[1, 2, 3]",
        "INFOrmation",
        "| a | table |",
        "E   = mc2",
    ],
)
def test_a_text_is_no_prefix(line: str):
    """What only looks like one stays."""
    assert peel(line).text == line
    assert not peel(line).prefixed


@pytest.mark.parametrize(
    "piece",
    ["(EngineCore pid=1", "(pid=1) ", "[rank0]: ", "ERROR ", "ERROR 11-21 ", "2026-11-21 ", "> ",
     "a:1:2 [", "[E1121 ", "a | ", "Aug 17 ", "(pid=", "[[[", "│ ",
     "a.sh: line 1: ", "zsh: ", "[1]+  "],
)  # fmt: skip
def test_no_line_makes_it_slow(piece: str):
    """A line of nothing but prefixes, or of their beginnings."""
    line = (piece * 4000)[:4000]
    began = time.process_time()
    peel(line)
    assert time.process_time() - began < 0.2


def test_a_level_and_a_place_without_a_time():
    """As a formatter writes them that leaves the time to systemd."""
    line = peel("(Worker_TP0 pid=123) ERROR [multiproc_executor.py:751] ValueError: x")
    assert (line.level, line.place, line.text) == (
        "ERROR", "multiproc_executor.py:751", "ValueError: x",
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-29 18:00:00,000 ERROR no such colour: green",
        "2026-11-29 18:00:00,000 ERROR parrot.server: no such colour: green",
        "ERROR parrot.server: no such colour: green",
    ],
)
def test_errors_as_pythons_logging_writes_them(line: str):
    """The formats that most programs choose."""
    peeled = peel(line)
    assert (peeled.level, peeled.text) == ("ERROR", "no such colour: green")
