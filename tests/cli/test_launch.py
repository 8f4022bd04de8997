"""`enginehouse launch` with local jobs, from the file to the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.command_line import House, journaled, sums, until

pytestmark = pytest.mark.slow


@pytest.fixture
def launch_file(house: House) -> Path:
    """A launch file of four samples of the user's own task."""
    items, canned = sums(right=3, wrong=1)
    name, _, answers = house.answers(canned).partition("=")
    return write_launch(
        house,
        {
            "defaults": [{"execution": "local"}, {"deployment": "vllm"}, "_self_"],
            "execution": {"output_dir": "jobs"},
            "deployment": {
                "checkpoint_path": str(house.model()),
                "tensor_parallel_size": 1,
                "served_model_name": "tiny",
                "env_vars": {name: answers},
            },
            "evaluation": {"tasks": [{"name": str(house.task(items))}]},
        },
    )


def write_launch(house: House, values: dict[str, Any]) -> Path:
    """A launch file."""
    return house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False))


def state(call: Any, job: str) -> str:
    """What `launch status` says."""
    done = call("launch", "status", job, "--json")
    assert done.code == 0, done.err
    return done.report[0]["status"]["state"]


def ended(call: Any, job: str) -> str:
    """The state in which a job ends."""
    running = ("pending", "running")
    return until(
        lambda: now if (now := state(call, job)) not in running else None, "it does not end"
    )


def test_from_the_file_to_the_run(house: House, call, launch_file: Path):
    """A job runs the evaluation, and its run is one as any other."""
    begun = call("launch", "run", "--config", str(launch_file), "--json")
    assert begun.code == 0, begun.err
    job = begun.report["id"]
    assert len(job) == 16
    assert ended(call, job[:6]) == "complete"
    folder = Path(begun.report["job"]["folder"])
    assert folder.parent == house.work / "jobs"
    shown = call("show", str(folder / "run"))
    assert shown.code == 0, shown.err
    assert "75.0%" in shown.out
    assert set(journaled(folder / "run").samples.values()) == {1}
    assert "75.0%" in call("launch", "logs", job).out
