"""`enginehouse launch` on Kubernetes, from the file to the run, on a faked and a real cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from anyio.from_thread import start_blocking_portal
from tests.support.command_line import Finished, House, answered, journaled, sums, until
from tests.support.kubernetes_control_plane import is_installed, running_control_plane
from tests.support.kubernetes_node import running_node

from enginehouse.testing.fake_kubernetes import running_fake_kubernetes

_PATIENCE = 120.0
_SECRET = "hf_notARealTokenButLongEnoughToBeOne"


class Cluster:
    """A cluster, its node, and who uses it by the command line."""

    def __init__(self, house: House, call: Callable[..., Finished], kubeconfig: Path) -> None:
        self.house = house
        self._call = call
        self._kubeconfig = str(kubeconfig)

    def run(self, *words: str, **env: str) -> Any:
        """`enginehouse launch WORDS`, which must succeed."""
        done = self._call("launch", *words, KUBECONFIG=self._kubeconfig, **env)
        assert done.code == 0, done.err
        return done

    def submit(self, *, fault: str | None = None) -> Any:
        """Launch four samples of the user's own task; `fault` hits the third one once."""
        house, volume = self.house, str(self.house.work)
        items, canned = sums(right=3, wrong=1)
        name, _, answers = house.answers(canned).partition("=")
        server = {name: answers, "VLLM_FAKE_STATE": str(house.folder / "faults.json")}
        if fault is not None:
            faults = [{"fault": fault, "match": "Sum number 2", "first": 1}]
            server["VLLM_FAKE_FAULTS"] = json.dumps(faults)
        passed = ("ENGINEHOUSE_HOME", "ENGINEHOUSE_VLLM_PYTHON", "PYTHONPATH", "HOME")
        values = {
            "defaults": [{"execution": "kubernetes"}, {"deployment": "vllm"}, "_self_"],
            "execution": {
                "output_dir": f"{volume}/jobs",
                "image": "registry.example/enginehouse:1",
                "command": [sys.executable, "-m", "enginehouse"],
                "volumes": {volume: {"host_path": volume}},
            },
            "deployment": {
                "checkpoint_path": str(house.model()),
                "tensor_parallel_size": 1,
                "env_vars": server,
            },
            "evaluation": {
                "tasks": [{"name": str(house.task(items))}],
                "env_vars": {one: f"lit:{house.env[one]}" for one in passed}
                | {"HF_TOKEN": "host:MY_TOKEN"},
            },
        }
        file = house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False))
        words = ("run", "--config", str(file), "--json")
        return self.run(*words, MY_TOKEN=_SECRET).report

    def reach(self, job: str, *states: str) -> Any:
        """Wait until the job is in one of the states."""

        def look() -> Any:
            status = self.run("status", job, "--json").report[0]["status"]
            return status if status["state"] in states else None

        return until(look, lambda: str(self.run("logs", job).out), patience=_PATIENCE)


@pytest.fixture(
    params=[
        "faked",
        pytest.param(
            "real",
            marks=[
                pytest.mark.kubernetes,
                pytest.mark.skipif(
                    not is_installed(), reason="run tools/build_kubernetes.sh first"
                ),
            ],
        ),
    ]
)
def cluster(
    request: pytest.FixtureRequest, house: House, call: Callable[..., Finished], tmp_path: Path
) -> Iterator[Cluster]:
    """Both kinds of cluster; nothing of their pods is left at the end."""
    kubeconfig, node = tmp_path / "kubeconfig", tmp_path / "node"
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        if request.param == "faked":
            running = running_fake_kubernetes(node)
            plane: Any = stack.enter_context(portal.wrap_async_context_manager(running))
        else:
            (tmp_path / "plane").mkdir()
            plane = stack.enter_context(running_control_plane(tmp_path / "plane"))
            taken = running_node(plane.address, plane.token, node)
            stack.enter_context(portal.wrap_async_context_manager(taken))
        kubeconfig.write_text(yaml.safe_dump(plane.kubeconfig()))
        yield Cluster(house, call, kubeconfig)


@pytest.mark.slow
def test_from_the_file_to_the_run(cluster: Cluster, call: Callable[..., Finished]) -> None:
    """The job serves, evaluates and ends; its run is as any other, and nothing has the token."""
    record = cluster.submit()
    status = cluster.reach(record["id"], "complete", "failed")
    assert status == {"state": "complete", "reason": None, "exit_code": 0}
    run = Path(record["job"]["folder"]) / "run"
    shown = call("show", str(run))
    assert shown.code == 0, shown.err
    assert "75.0%" in shown.out
    assert set(journaled(run).samples.values()) == {1}
    log = cluster.run("logs", record["id"]).out
    assert "75.0%" in log
    assert _SECRET not in log + json.dumps(record)
    written = [path for path in cluster.house.folder.rglob("*") if path.is_file()]
    assert not [path for path in written if _SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
def test_kill_and_resume(cluster: Cluster) -> None:
    """A killed job leaves nothing running; resumed by hand, it goes on."""
    record = cluster.submit(fault="hang")
    job, run = record["id"], Path(record["job"]["folder"]) / "run"
    until(lambda: answered(run) >= 3, "no sample is answered", patience=_PATIENCE)
    cluster.run("kill", job)
    assert cluster.reach(job, "cancelled", "failed")["state"] == "cancelled"
    assert list(cluster.house.processes()) == []
    cluster.run("resume", job, MY_TOKEN=_SECRET)
    assert cluster.reach(job, "complete", "failed")["state"] == "complete"
    assert set(journaled(run).samples.values()) == {1}
