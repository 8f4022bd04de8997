"""The scripts of a job, mostly as text; test_executor.py has Slurm run them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import (
    Companion,
    Environment,
    JobSpec,
    JobState,
    Resources,
)
from enginehouse.jobs.executors.slurm.attempts import ATTEMPTS, Attempt, read_attempts
from enginehouse.jobs.executors.slurm.script import SCRIPT, scripts, submission
from enginehouse.jobs.executors.slurm.settings import SlurmSettings

SECRET = "hf_not_to_be_seen"


def job(**changes: object) -> JobSpec:
    """A job with a name, a folder and words that a shell would trip over."""
    values: dict[str, object] = {
        "id": "0123456789abcdef",
        "name": "it's a name",
        "folder": PurePosixPath("/jobs/my folder/100%/x"),
        "command": ("enginehouse", "eval", "--config", "a 'b' $c.yaml"),
        "environment": Environment(
            values={"A": "it's $HOME"},
            secrets=frozenset({"HF_TOKEN"}),
            from_machine={"KEY": "SITE_KEY"},
        ),
        "resources": Resources(nodes=1, gpus_per_node=2, cpus_per_node=6, memory_gb=1.5),
    }
    return JobSpec(**{**values, **changes})  # type: ignore[arg-type]


def batch(spec: JobSpec, **settings: object) -> str:
    """The batch script."""
    return scripts(spec, SlurmSettings.model_validate({"output_dir": "/jobs", **settings}))[0].text


def flags(text: str) -> list[str]:
    """The flags in a script's head."""
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH " in line]


COMPANION = Companion(
    name="ray worker", command=("ray", "start", "--address={head}:6379", "{node}"), nodes=2
)
VARIANTS = {
    "plain": (job(), {}),
    "resuming": (job(), {"max_walltime": "10:00:00"}),
    "companions": (job(companions=(COMPANION,)), {"max_walltime": "10:00:00"}),
    "container": (
        job(),
        {
            "max_walltime": "10:00:00",
            "image": "me/image:1",
            "mounts": {"deployment": {"/data": "/in"}},
        },
    ),
    "before": (job(before="set -x\nmodule load cuda"), {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_shell_reads_every_script(name):
    """No name or word breaks the syntax."""
    spec, given = VARIANTS[name]
    settings = SlurmSettings.model_validate({"output_dir": "/jobs", **given})
    texts = [artifact.text for artifact in scripts(spec, settings)]
    texts.append(submission(spec, settings, {"HF_TOKEN": "it's"}))
    for text in texts:
        done = subprocess.run(
            ["bash", "-n"], input=text, text=True, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), text


def test_the_head_asks_for_what_the_job_needs():
    """As flags of sbatch."""
    asked = flags(
        batch(
            job(companions=(COMPANION,)),
            account="acc",
            partition="p",
            walltime="1-02:00:00",
            sbatch_comment='say "hi"',
            sbatch_extra_flags={"exclusive": True, "qos": "high", "switches": None, "x": False},
        )
    )
    assert "--account=acc" in asked
    assert "--partition=p" in asked
    assert "--nodes=3" in asked
    assert "--gpus-per-node=2" in asked
    assert "--cpus-per-task=6" in asked
    assert "--mem=1536M" in asked
    assert "--time=1-02:00:00" in asked
    assert "--exclusive" in asked
    assert "--qos=high" in asked
    assert '--comment="say \\"hi\\""' in asked
    assert '--output="/jobs/my folder/100%%/x/log.txt"' in asked
    assert not [flag for flag in asked if "switches" in flag or "--x" in flag]


def test_gres_replaces_the_number_of_gpus():
    """Clusters know one or the other."""
    asked = flags(batch(job(), gres="gpu:h100:2"))
    assert "--gres=gpu:h100:2" in asked
    assert not [flag for flag in asked if "gpus" in flag]


def test_flags_of_the_user_win():
    """Each stands there once."""
    asked = flags(batch(job(), sbatch_extra_flags={"mem": 0, "job-name": "mine"}))
    assert "--mem=0" in asked
    assert "--job-name=mine" in asked
    assert len([flag for flag in asked if flag.startswith("--mem")]) == 1


def test_an_image_is_run_by_pyxis():
    """Without an image, there is no container."""
    text = batch(
        job(), image="me/image:1", mounts={"evaluation": {"/d": "/e"}, "mount_home": False}
    )
    assert "--container-image=me/image:1" in text
    assert "/d:/e" in text
    assert "--no-container-mount-home" in text
    assert "--container" not in batch(job(), mounts={"evaluation": {"/d": "/e"}})


def test_scripts_have_no_values_of_secrets():
    """They are in what the login node reads, and in nothing that it writes."""
    settings = SlurmSettings(output_dir="/jobs", max_walltime=36000)
    texts = [artifact.text for artifact in scripts(job(companions=(COMPANION,)), settings)]
    assert not [text for text in texts if SECRET in text]
    assert SECRET in submission(job(), settings, {"HF_TOKEN": SECRET})


def test_a_name_that_is_no_variable_is_refused():
    """A shell would run it."""
    with pytest.raises(JobError) as caught:
        batch(job(environment=Environment(values={"A;reboot": "x"})))
    assert caught.value.kind == "variable_name"


@pytest.mark.parametrize(
    ("shown", "state", "reason"),
    [
        ("JobState=CANCELLED Reason=None Restarts=0", JobState.CANCELLED, "CANCELLED"),
        ("JobState=TIMEOUT Reason=TimeLimit Restarts=0", JobState.INTERRUPTED, "TIMEOUT"),
        ("JobState=PENDING Reason=BeginTime Restarts=1", JobState.INTERRUPTED, "REQUEUED"),
        ("JobState=RUNNING Reason=None Restarts=0", JobState.INTERRUPTED, "SIGTERM"),
    ],
)
def test_the_command_may_end_before_its_script_is_signalled(
    tmp_path: Path, shown: str, state: JobState, reason: str
):
    """Slurm signals one process after the other, and knows why."""
    spec = job(folder=PurePosixPath(tmp_path), command=("bash", "-c", "kill -TERM $$"))
    settings = SlurmSettings(output_dir="/jobs")
    for artifact in scripts(spec, settings):
        (tmp_path / artifact.name).write_text(artifact.text)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho 'JobId=7 {shown} TimeLimit=1'\n")
    scontrol.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", tmp_path / SCRIPT],
        env={"PATH": path, "SLURM_JOB_ID": "7", "SITE_KEY": "k"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    (attempt,) = read_attempts((tmp_path / ATTEMPTS).read_text(), first=7)
    assert attempt == Attempt(7, state, reason, 143)
