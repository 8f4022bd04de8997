"""A job on Slurm as its user sees it: a launch file, and the commands of `enginehouse launch`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.command_line import Finished, House, answered, sums, until

_PASSED = ("ENGINEHOUSE_HOME", "ENGINEHOUSE_VLLM_PYTHON", "PYTHONPATH", "HOME")


def write_launch(
    house: House,
    *,
    model: Path,
    server: Mapping[str, str],
    items: list[dict[str, Any]],
    **execution: object,
) -> str:
    """A launch file for the user's own task; a job sees this machine's house."""
    values = {
        "defaults": [{"execution": "slurm/default"}, {"deployment": "vllm"}, "_self_"],
        "execution": {
            "output_dir": str(house.work / "jobs"),
            "gpus_per_node": 0,
            "partition": "batch",
            "max_walltime": None,
            **execution,
        },
        "deployment": {
            "checkpoint_path": str(model),
            "served_model_name": "tiny",
            "tensor_parallel_size": 1,
            "env_vars": dict(server),
        },
        "evaluation": {
            "tasks": [{"name": str(house.task(items))}],
            "env_vars": {name: f"lit:{house.env[name]}" for name in _PASSED if name in house.env},
        },
    }
    return str(house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False)))


def write_fake_launch(
    house: House,
    *,
    server: Mapping[str, str] | None = None,
    hangs: bool = False,
    **execution: object,
) -> str:
    """A launch file of four samples, of which the fake engine answers three right.

    If it `hangs`, the first request for the third sample is never answered.
    """
    items, canned = sums(right=3, wrong=1)
    name, _, answers = house.answers(canned).partition("=")
    variables = {name: answers, "VLLM_FAKE_STATE": str(house.folder / "faults.json")}
    if hangs:
        faults = [{"fault": "hang", "match": "Sum number 2", "first": 1}]
        variables["VLLM_FAKE_FAULTS"] = json.dumps(faults)
    variables |= server or {}
    return write_launch(house, model=house.model(), server=variables, items=items, **execution)


class Job:
    """A job, by the commands of its user."""

    def __init__(
        self, call: Callable[..., Finished], launch_file: str, *, patience: float = 240.0
    ) -> None:
        self._call = call
        self._patience = patience  # Slurm looks at time limits every half a minute
        self.id, self.folder = "", Path()
        report = self.run("run", "--config", launch_file, "--json").report
        self.id, self.folder = report["id"], Path(report["job"]["folder"])

    def run(self, *words: str) -> Finished:
        """`enginehouse launch WORDS`, which must succeed."""
        done = self._call("launch", *words)
        assert done.code == 0, done.err
        return done

    def status(self) -> dict[str, Any]:
        """What `launch status` says."""
        status: dict[str, Any] = self.run("status", self.id[:6], "--json").report[0]["status"]
        return status

    def reach(self, *states: str) -> dict[str, Any]:
        """Wait for one of these states."""
        found: dict[str, Any] = until(
            lambda: status if (status := self.status())["state"] in states else None,
            lambda: f"{self.status()}\n{self.log()}",
            patience=self._patience,
        )
        return found

    def log(self) -> str:
        """What `launch logs` prints."""
        return self.run("logs", self.id).out

    def reach_sample(self, number: int) -> None:
        """Wait until so many samples are answered."""
        until(
            lambda: answered(self.folder / "run") >= number,
            lambda: f"{self.status()}\n{self.log()}",
            patience=self._patience,
        )
