"""Jobs on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePosixPath

import pytest

from enginehouse.core.errors import ConfigurationError, JobError
from enginehouse.jobs.base import Handle, JobSpec, JobState
from enginehouse.jobs.executors import local
from enginehouse.jobs.executors.local import LocalExecutor, LocalSettings
from enginehouse.jobs.launch_file import read_launch
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, check_executor


def executor(folder: object) -> LocalExecutor:
    """An executor of jobs on this machine."""
    return LocalExecutor(LocalSettings(output_dir=str(folder), kill_grace=1), Context())


async def reaches(executor: LocalExecutor, handle: Handle, state: JobState) -> None:
    """Wait until the job has this state."""
    async with asyncio.timeout(60):
        while (await executor.statuses([handle]))[0].state is not state:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
async def test_conformance(tmp_path, name: str):
    """What every executor must do."""
    failures = await check_executor(
        lambda: executor(tmp_path), folder=PurePosixPath(tmp_path), only={name}
    )
    assert failures == []


@pytest.mark.slow
async def test_a_job_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a home that both share, it is not started twice, and its end is known in both."""
    go = tmp_path / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.05; done"
    job = JobSpec(
        id="0123456789abcdef",
        name="waits",
        folder=PurePosixPath(tmp_path / "job"),
        command=("/bin/sh", "-c", script),
    )
    here = executor(tmp_path)
    handle = await here.submit(job, secrets={})
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(local.socket, "gethostname", lambda: "elsewhere")
        (status,) = await here.statuses([handle])
        assert status.state is JobState.UNKNOWN
        assert await here.find(job) == handle
        for work in (here.submit(job, secrets={}), here.cancel(handle)):
            with pytest.raises(JobError) as caught:
                await work
            assert caught.value.kind == "other_machine"
        go.touch()
        await reaches(here, handle, JobState.COMPLETE)
    await reaches(here, handle, JobState.COMPLETE)


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
