"""A server that somebody else runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.command_line import House, Running


@contextmanager
def fake_engine(house: House, *flags: str, port: int = 0, **env: str) -> Iterator[str]:
    """A fake engine that somebody else runs; gives its URL. It must outlive what uses it."""
    program = [sys.executable, "-m", "enginehouse.testing.fake_engine", "--model", "theirs"]
    running: Running = house.start_program([*program, "--port", str(port), *flags], **env)
    said = running.until("Application startup complete")
    yield re.findall(r"Starting vLLM server on (http://\S+)", said)[0]
    assert running.process.poll() is None, "somebody else's server was stopped"
    running.kill()
