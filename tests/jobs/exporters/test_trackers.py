"""MLflow and Weights & Biases as they are, in an environment of their own, without a network."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support import SUPPORT
from tests.support.command_line import SOURCE
from tests.support.comparable_runs import ran, wrong_below
from tests.support.package_environment import ensure_packages

from enginehouse.jobs.exporters.figures import labels_of, metrics_of, read_figures

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def exporter_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with MLflow, wandb and what Enginehouse itself needs."""
    parts = (SOURCE.parent / "requirements/base.txt", SUPPORT / "exporter-requirements.txt")
    requirements = tmp_path_factory.mktemp("exporters") / "requirements.txt"
    requirements.write_bytes(b"".join(part.read_bytes() for part in parts))
    return ensure_packages("exporters", requirements=requirements)


def exported(python: Path, *words: str | Path) -> dict[str, Any]:
    """What the program finds in both services, after its exports."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "WANDB_"))}
    env |= {"PYTHONPATH": str(SOURCE), "MLFLOW_DISABLE_TELEMETRY": "true"}
    env |= {"HOME": str(words[-1]), "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(
        [str(python), str(SUPPORT / "export_to_trackers.py"), *map(str, words)],
        env=env,
        cwd=words[-1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
async def test_exports_update_what_is_there(layout, tmp_path, exporter_python):
    """Two runs, of which one is exported three times: two there, with every figure and label."""
    one = await ran(layout, wrong_below(3), samples=2, temperature=1.0)
    other = await ran(layout, wrong_below(9), samples=2, temperature=1.0)
    found = exported(exporter_python, one.folder, other.folder, tmp_path)
    first, second = (read_figures(run) for run in (one, other))

    assert len(found["mlflow"]) == 2
    there = {run["name"]: run for run in found["mlflow"]}
    assert there[other.info.id]["metrics"] == pytest.approx(metrics_of(second))
    assert there[other.info.id]["status"] == "FINISHED"
    assert there[other.info.id]["artifact"]["labels"]["run"] == other.info.id
    tags = there[other.info.id]["tags"]
    for name, value in labels_of(second).items():
        assert tags[f"enginehouse.{name}"] == str(value), name
    assert tags["team"] == "evaluation"
    again = there[one.info.id]
    assert again["history"] == [first.figures[0].value, 0.125]
    assert again["metrics"]["addone/headline"] == 0.125
    gone = first.figures[-1].name
    assert math.isnan(again["metrics"][gone.replace("@", "_")])

    ids = [run["id"] for run in found["wandb"]]
    assert sorted(ids) == sorted([one.info.id] * 3 + [other.info.id])
    (once,) = (run for run in found["wandb"] if run["id"] == other.info.id)
    assert once["summary"].items() >= metrics_of(second).items()
    assert once["config"].items() >= labels_of(second).items()
    assert once["project"] == "ours"
    latest = [run for run in found["wandb"] if run["id"] == one.info.id][-1]
    assert latest["summary"]["addone/headline"] == 0.125
    for run in found["wandb"]:
        assert (run["history"], run["output"]) == (0, 0)

    assert found["refused"]["mlflow"]["kind"] == "refused"
    assert found["refused"]["wandb"]["kind"] == "no_key"
