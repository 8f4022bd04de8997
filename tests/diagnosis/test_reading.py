"""A log is recognised, and read within bounds, from a file or a pipe."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from enginehouse.core.errors import StartError
from enginehouse.diagnosis import FailureKind, diagnose_log, explain_log, explained
from enginehouse.engines.hf.engine import HfEngine
from enginehouse.engines.llamacpp.engine import LlamaCppEngine
from enginehouse.engines.sglang.engine import SglangEngine
from enginehouse.engines.vllm.engine import VllmEngine

PROFILES = [
    engine.log_profile for engine in (VllmEngine(), SglangEngine(), LlamaCppEngine(), HfEngine())
]
VLLM = PROFILES[0]
LOGS = Path(__file__).parent / "logs"
ANSWERED = '(APIServer pid=1) INFO:     127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK\n'
HEAD = "Traceback (most recent call last):"
NOISE = "(APIServer pid=1) WARNING 11-21 04:30:17 [a.py:1] something cannot be found\n"


class Pipe(io.BytesIO):
    """Bytes that cannot be sought in."""

    def seekable(self) -> bool:
        """It is a pipe."""
        return False


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
@pytest.mark.parametrize("path", sorted(LOGS.glob("*/out_of_memory--*.log")), ids=lambda p: p.stem)
def test_a_pipe_is_read_as_a_file_is(path: Path, kind: type[io.BytesIO]):
    """Engine and kind are the same."""
    source = kind(path.read_bytes())
    found = explain_log(source, profiles=PROFILES, otherwise=VLLM, exit_code=None)
    assert found.engine == path.parent.name
    assert found.diagnosis is not None
    assert found.diagnosis.kind is FailureKind.OUT_OF_MEMORY


@pytest.mark.slow
def test_the_end_of_a_long_log_tells_the_engine_too():
    """Where its beginning is nothing but somebody else's lines."""
    log = (LOGS / "sglang/too_slow--watchdog_hard.log").read_bytes()
    source = io.BytesIO(b"a proxy's line\n" * 200_000 + log)
    found = explain_log(source, profiles=PROFILES, otherwise=VLLM, exit_code=None)
    assert found.engine == "sglang"


def test_a_log_of_nobody(tmp_path: Path):
    """What no engine's marks are in is read all the same."""
    source = io.BytesIO(
        b"Traceback (most recent call last):\nOSError: [Errno 28] No space left on device\n"
    )
    found = explain_log(source, profiles=PROFILES, otherwise=VLLM, exit_code=None)
    assert found.engine is None
    assert found.diagnosis is not None
    assert found.diagnosis.kind is FailureKind.DISK_FULL


@pytest.mark.slow
@pytest.mark.parametrize(
    "middle",
    [ANSWERED * 500_000, NOISE * 200_000, "x" * 40_000_000, f"{HEAD}\nKeyError: 1\n" * 300_000],
    ids=["answers", "warnings", "one line", "tracebacks"],
)
def test_a_long_log_takes_a_bounded_time(middle: str, tmp_path: Path):
    """What stands at its end is found, whatever is before it."""
    log = tmp_path / "server.log"
    end = (LOGS / "vllm/engine_died--a_request_failed_before.log").read_text()
    log.write_text(end.partition("(APIServer pid=71) ERROR")[0] + middle + "\n" + end)
    began = time.process_time()
    found = diagnose_log(log, profile=VLLM, exit_code=1)
    assert time.process_time() - began < 60
    assert found is not None
    assert found.evidence.startswith("IndexError: index 4096")


def test_a_start_that_took_too_long_quotes_what_it_waited_for():
    """The error of the start says it instead of "no answer yet"."""
    log = LOGS / "vllm/waiting--for_the_other_node.log"
    error = StartError("not ready after 900 s", why="it has not answered yet", fix="wait longer")
    told = explained(error, diagnose_log(log, profile=VLLM, exit_code=None), log=log)
    assert told.kind == "waiting"
    assert "1 remote core engine" in (told.why or "")
