"""`info --copy-logs` and `--copy-artifacts` of the launcher's command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.command_line import House, sums, until


@pytest.mark.slow
def test_logs_and_artifacts_are_copied(house: House, call):
    """Of several jobs, each into a folder of its own; then what there is to know is shown."""
    items, canned = sums(right=2)
    name, _, answers = house.answers(canned).partition("=")
    file = house.write(
        "launch.yaml",
        "defaults: [execution: local, deployment: vllm, _self_]\n"
        "execution: {output_dir: jobs}\n"
        f"deployment: {{checkpoint_path: {house.model()}, tensor_parallel_size: 1, "
        f"env_vars: {{{name}: {answers}}}}}\n"
        f"evaluation: {{tasks: [{{name: {house.task(items)}}}]}}\n",
    )
    begun = call("launch", "run", "--config", str(file), "--json")
    assert begun.code == 0, begun.err
    job = begun.report["id"]

    def ended() -> bool:
        status = json.loads(call("launch", "status", job, "--json").out)[0]["status"]
        return status["state"] == "complete"

    until(ended, "it does not end")
    words = ("info", f"{job}.0", f"{job}.1", "--copy-logs", "copies", "--copy-artifacts")
    done = subprocess.run(
        [sys.executable, "-m", "enginehouse.facades.nemo", *words],
        capture_output=True,
        text=True,
        check=False,
        env=house.env,
        cwd=house.work,
    )
    assert done.returncode == 0, done.stderr
    assert "100.0%" in (house.work / "copies" / job / "logs" / "log.txt").read_text()
    artifacts = house.work / job / "artifacts"
    assert (artifacts / "journal.jsonl").is_file()
    assert "complete" in done.stdout
    assert Path(begun.report["job"]["folder"]).is_dir()
