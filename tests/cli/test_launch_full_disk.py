"""Local jobs whose disk is full: when they are submitted, and while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from tests.support.command_line import Finished, House, journaled, sums, until
from tests.support.small_disks import small_disk

from enginehouse.core.errors import StoreError

Call = Callable[..., Finished]
Resize = Callable[[int], None]


@pytest.fixture
def disk(house: House) -> Iterator[Resize]:
    """Give the jobs' folder a disk of so many KB, or make it larger."""
    with small_disk(house.work / "jobs") as own:
        yield own.resize


@pytest.fixture
def file(house: House) -> Path:
    """A launch file of sixty samples that take their time."""
    items, canned = sums(right=60)
    name, _, answers = house.answers(canned).partition("=")
    values = {
        "defaults": [{"execution": "local"}, {"deployment": "vllm"}, "_self_"],
        "execution": {"output_dir": "jobs"},
        "deployment": {
            "checkpoint_path": house.model().name,
            "tensor_parallel_size": 1,
            "env_vars": {name: answers, "VLLM_FAKE_TOKEN_LATENCY": "0.02"},
        },
        "evaluation": {
            "tasks": [{"name": str(house.task(items))}],
            "nemo_evaluator_config": {"config": {"params": {"parallelism": 1}}},
        },
    }
    return house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False))


def test_a_disk_without_room_for_the_job(house: House, call: Call, disk: Resize, file: Path):
    """The launch says so; no job, no record and no folder is left."""
    disk(4)
    refused = call("launch", "run", "--config", str(file))
    assert refused.code == StoreError.exit_code, refused.err
    assert any(said in refused.err for said in ("No space left", "B free", "full"))
    assert "next:" in refused.err
    assert call("launch", "ls", "runs", "--json").report == []
    assert list((house.work / "jobs").iterdir()) == []
    house.nothing_left()


@pytest.mark.slow
def test_a_disk_that_fills_while_the_job_runs(house: House, call: Call, disk: Resize, file: Path):
    """The job ends and says why, nothing of it is left; with room again it is resumed."""
    disk(2048)
    begun = call("launch", "run", "--config", str(file), "--json")
    assert begun.code == 0, begun.err
    job, folder = begun.report["id"], Path(begun.report["job"]["folder"])
    until((folder / "run/journal.jsonl").exists, "no run")
    until(lambda: journaled(folder / "run").scores, "nothing is scored")
    filler = house.work / "jobs" / "filler"
    with filler.open("wb", buffering=0) as content, suppress(OSError):
        while content.write(b"x" * 512):
            pass

    def ended() -> str | None:
        state = call("launch", "status", job, "--json").report[0]["status"]["state"]
        return None if state in ("pending", "running") else str(state)

    assert until(ended, "it does not end") in ("failed", "interrupted")
    assert "full" in call("launch", "status", job).out + call("launch", "logs", job).out
    house.nothing_left()
    filler.unlink()
    resumed = call("launch", "resume", job)
    assert resumed.code == 0, resumed.err
    assert until(ended, "it does not end") == "complete"
    state = journaled(folder / "run")
    assert state.counts() == {"correct": 60}
    assert {*state.samples.values(), *state.scores.values()} == {1}
