"""Jobs on this machine."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.executors.local import LocalExecutor, LocalSettings
from enginehouse.jobs.launch_file import read_launch
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, check_executor

pytestmark = pytest.mark.slow


def executor(folder: object) -> LocalExecutor:
    """An executor of jobs on this machine."""
    return LocalExecutor(LocalSettings(output_dir=str(folder), kill_grace=1), Context())


@pytest.mark.parametrize("name", CASES)
async def test_conformance(tmp_path, name: str):
    """What every executor must do."""
    failures = await check_executor(
        lambda: executor(tmp_path), folder=PurePosixPath(tmp_path), only={name}
    )
    assert failures == []


def test_a_file_for_slurm_on_this_machine(tmp_path: Path):
    """Keys of Slurm alone have no effect there, and are listed; a misspelt key is still refused."""
    file = tmp_path / "launch.yaml"
    text = (
        "defaults: [execution: slurm/default, deployment: vllm, _self_]\n"
        "execution: {output_dir: /jobs, account: a, gres: 'gpu:2', walltime: '02:00:00'}\n"
        "deployment: {checkpoint_path: /m, tensor_parallel_size: 1}\n"
        "evaluation: {tasks: [{name: gsm8k}]}\n"
    )
    file.write_text(text)
    config = read_launch(file, overrides=["execution=local"])
    assert config.execution.type == "local"
    assert config.execution.resources(gpus=1).walltime == 7200
    assert {"execution.account", "execution.gres"} <= config.not_acted_on.keys()
    assert "slurm" in config.not_acted_on["execution.gres"]
    file.write_text(text.replace("account", "acount"))
    with pytest.raises(ConfigurationError, match="acount"):
        read_launch(file, overrides=["execution=local"])
