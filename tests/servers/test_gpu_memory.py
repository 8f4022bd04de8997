"""GPU memory after a stop, with the driver's answers given."""

from __future__ import annotations

import pytest

from enginehouse.core.errors import StopError
from enginehouse.servers import gpu_memory
from enginehouse.servers.gpu_memory import require_memory_back
from enginehouse.servers.timings import Timings

NOW = Timings(gpu_memory=0.0, gpu_memory_poll=0.0)


@pytest.fixture
def driver(monkeypatch):
    """What the driver answers, one mapping after the other, the last one for good."""

    def answer(*answers: dict[int, int]) -> list[dict[int, int]]:
        left = list(answers)
        asked: list[dict[int, int]] = []

        def read() -> dict[int, int]:
            asked.append(left.pop(0) if len(left) > 1 else left[0])
            return asked[-1]

        monkeypatch.setattr(gpu_memory, "memory_by_pid", read)
        return asked

    return answer


async def test_it_waits_until_the_memory_is_back(driver):
    """Processes of others keep theirs; ours must have none before a stop is one."""
    asked = driver({1: 5 << 30, 7: 1 << 30}, {1: 5 << 30, 7: 1 << 20}, {1: 5 << 30})
    await require_memory_back({7, 8}, baseline={1: 5 << 30}, timings=Timings(gpu_memory_poll=0.0))
    assert len(asked) == 3


async def test_a_pid_that_had_memory_before_is_not_ours(driver):
    """A pid that came round again is judged by what it held before the launch."""
    asked = driver({7: 1 << 30})
    await require_memory_back({7}, baseline={7: 1 << 30})
    assert len(asked) == 1


async def test_memory_that_stays_is_no_stop(driver):
    """The error names pid and size."""
    driver({7: 3 << 30})
    with pytest.raises(StopError, match=r"3072 MiB.* pid 7") as caught:
        await require_memory_back({7}, baseline={}, timings=NOW)
    assert "nvidia-smi" in caught.value.fix


async def test_without_a_gpu_nothing_is_waited_for(driver):
    """No driver, no memory."""
    asked = driver({})
    await require_memory_back({7}, baseline={})
    assert len(asked) == 1
