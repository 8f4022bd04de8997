from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from enginehouse.processes.usage import UsageMeter

SPIN = """
import time
while time.process_time() < 0.4:
    pass
print("spun", flush=True)
input()
"""


@pytest.fixture
def spinner():
    """A process that used 0.4 s of a core, and waits from then on."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SPIN], **pipes, text=True) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_cpu_is_what_was_spent_between_two_readings(spinner):
    """0.4 s of a core in 2 s of the clock are 0.2 cores; the first reading has no CPU."""
    moments = iter((100.0, 102.0, 104.0))
    meter = UsageMeter(clock=lambda: next(moments))
    first = meter.read([])
    assert (first.processes, first.cpu, first.rss_bytes) == (0, None, 0)
    assert spinner.stdout.readline() == "spun\n"
    second = meter.read([spinner.pid])
    assert second.cpu == pytest.approx(0.2, abs=0.05)
    assert second.rss_bytes == pytest.approx(psutil.Process(spinner.pid).memory_info().rss, rel=0.2)
    assert meter.read([spinner.pid]).cpu == pytest.approx(0.0, abs=0.02)


def test_processes_may_end(spinner):
    """One that is gone counts no more, and takes nothing from the rest."""
    meter = UsageMeter()
    both = meter.read([os.getpid(), spinner.pid])
    spinner.kill()
    spinner.wait()
    left = meter.read([os.getpid(), spinner.pid])
    assert (both.processes, left.processes) == (2, 1)
    assert 0 < left.rss_bytes < both.rss_bytes
    assert left.cpu is not None
    assert left.cpu >= 0
