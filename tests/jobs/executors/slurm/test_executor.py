"""Jobs on a real Slurm cluster, whose daemons run on this machine."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath

import psutil
import pytest
from tests.support.slurm_cluster import SlurmCluster

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Companion, Environment, Handle, JobSpec, JobState, Resources
from enginehouse.jobs.executors.slurm.executor import SlurmExecutor
from enginehouse.jobs.executors.slurm.settings import SlurmSettings
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, check_executor

pytestmark = pytest.mark.slurm
SECRET = "hf_a_value_that_nobody_may_see"
# Goes on where it was interrupted, as an evaluation does: complete when it is run the second time.
# Slurm ends one process after the other, and the shell may hear of it after its sleep.
CONTINUES = """\
[ ! -e begun ] || { echo continued; exit 0; }
touch begun
trap 'echo ended cleanly; exit 143' TERM
while :; do sleep 0.2; done
"""


def executor(folder: Path, **settings: object) -> SlurmExecutor:
    """An executor that calls sbatch on this machine."""
    return SlurmExecutor(
        SlurmSettings.model_validate({"output_dir": str(folder), **settings}), Context()
    )


def job(folder: Path, script: str, **changes: object) -> JobSpec:
    """A job that runs `script`."""
    number = secrets.token_hex(8)
    return JobSpec(
        id=number,
        name=f"test-{number}",
        folder=PurePosixPath(folder / number),
        command=("/bin/bash", "script.sh"),
        files={"script.sh": script},
        **changes,  # type: ignore[arg-type]
    )


async def reach(slurm: SlurmExecutor, handle: Handle, *states: JobState, patience: float = 60):
    """Wait until the job is in one of `states`."""
    deadline = time.monotonic() + patience
    while True:
        (status,) = await slurm.statuses([handle])
        if status.state in states:
            return status
        log = await said(slurm, handle)
        assert not status.state.ended, f"it is {status}:\n{log}"
        assert time.monotonic() < deadline, f"it is {status}:\n{log}"
        await asyncio.sleep(0.2)


async def said(slurm: SlurmExecutor, handle: Handle) -> str:
    """The job's log."""
    return "".join([piece async for piece in slurm.logs(handle, follow=False)])


async def until(condition: Callable[[], object]) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def everything_in(*places: Path) -> str:
    """The content of all files there."""
    files = (file for place in places for file in (place, *place.rglob("*")) if file.is_file())
    return "".join(file.read_text(errors="replace") for file in files)


@pytest.fixture
async def resuming(cluster: SlurmCluster, tmp_path: Path) -> AsyncIterator[SlurmExecutor]:
    """An executor whose jobs resume by themselves."""
    async with executor(tmp_path, partition="batch", max_walltime="05:00:00") as slurm:
        yield slurm


@pytest.mark.parametrize("name", CASES)
async def test_conformance(cluster: SlurmCluster, tmp_path: Path, name: str):
    """What every executor must do."""
    failures = await check_executor(
        lambda: executor(tmp_path), folder=PurePosixPath(tmp_path), only={name}
    )
    assert failures == []


async def test_time_limits(cluster: SlurmCluster, tmp_path: Path):
    """Warned of the limit or killed at it, a job goes on in another one, until max_walltime."""
    common = {"walltime": "00:01:00"}
    warned = executor(tmp_path, **common, max_walltime="01:00:00", stop_before=30)
    killed = executor(tmp_path, **common, max_walltime="01:00:00", stop_before=0)
    used_up = executor(tmp_path, **common, max_walltime="00:01:00", stop_before=30)
    alone = executor(tmp_path, **common, stop_before=30)
    stubborn = "trap 'echo ended; exit 1' TERM; while :; do sleep 0.2; done"
    handles = {
        "warned": await warned.submit(job(tmp_path, CONTINUES), secrets={}),
        "killed": await killed.submit(job(tmp_path, CONTINUES), secrets={}),
        "used up": await used_up.submit(job(tmp_path, stubborn), secrets={}),
        "alone": await alone.submit(job(tmp_path, stubborn), secrets={}),
    }
    for name, state in (
        ("warned", JobState.COMPLETE),
        ("killed", JobState.COMPLETE),
        ("used up", JobState.INTERRUPTED),
        ("alone", JobState.INTERRUPTED),
    ):
        status = await reach(warned, handles[name], state, patience=200)
        if state is JobState.INTERRUPTED:
            assert status.reason == "TIMEOUT"
        else:
            log = await said(warned, handles[name])
            assert log.count("ended cleanly") == log.count("continued") == 1, log
    await until(lambda: not cluster.run("squeue", "--noheader"))


@pytest.mark.parametrize("partition", ["spot", "requeue"])
async def test_a_preempted_job_goes_on(cluster: SlurmCluster, tmp_path: Path, partition: str):
    """Preempted, it goes on in its successor, or is requeued."""
    slurm = executor(tmp_path, partition=partition, max_walltime="05:00:00")
    handle = await slurm.submit(job(tmp_path, CONTINUES), secrets={})
    await until((Path(handle.folder) / "begun").exists)
    urgent = executor(
        tmp_path, partition="urgent", num_nodes=2, sbatch_extra_flags={"exclusive": True}
    )
    blocker = await urgent.submit(
        job(tmp_path, "sleep 3", resources=Resources(nodes=2)), secrets={}
    )
    await reach(urgent, blocker, JobState.COMPLETE)
    await reach(slurm, handle, JobState.COMPLETE)
    assert "continued" in await said(slurm, handle)
    await until(lambda: not cluster.run("squeue", "--noheader"))


@pytest.mark.parametrize("requeue", [True, False])
async def test_a_job_whose_node_failed_goes_on(cluster: SlurmCluster, tmp_path: Path, requeue):
    """Requeued by Slurm, or in its successor, on the node that is left."""
    slurm = executor(tmp_path, max_walltime="05:00:00", requeue=requeue)
    handle = await slurm.submit(job(tmp_path, CONTINUES), secrets={})
    await until((Path(handle.folder) / "begun").exists)
    node = cluster.run("squeue", "--noheader", "--states=RUNNING", "--format=%N").strip()
    cluster.lose_node(node)
    try:
        await reach(slurm, handle, JobState.COMPLETE)
    finally:
        cluster.return_node(node)
    assert "continued" in await said(slurm, handle)


async def test_a_job_that_is_cancelled_by_hand_does_not_go_on(
    resuming: SlurmExecutor, cluster: SlurmCluster, tmp_path: Path
):
    """With scancel, by its user."""
    handle = await resuming.submit(job(tmp_path, CONTINUES), secrets={})
    await until((Path(handle.folder) / "begun").exists)
    await until(lambda: "PENDING" in cluster.run("squeue", "--noheader", "--format=%T"))
    cluster.run("scancel", handle.reference["job"])
    await reach(resuming, handle, JobState.CANCELLED)
    await until(lambda: not cluster.run("squeue", "--noheader"))
    assert "continued" not in await said(resuming, handle)


async def test_a_signal_to_the_script_alone_reaches_the_command(
    resuming: SlurmExecutor, cluster: SlurmCluster, tmp_path: Path
):
    """It ends in good order, and nothing goes on by itself."""
    handle = await resuming.submit(job(tmp_path, CONTINUES), secrets={})
    await until((Path(handle.folder) / "begun").exists)
    cluster.run("scancel", "--batch", "--signal=TERM", handle.reference["job"])
    status = await reach(resuming, handle, JobState.INTERRUPTED)
    assert status.reason == "SIGTERM"
    assert (await said(resuming, handle)).count("ended cleanly") == 1
    await until(lambda: not cluster.run("squeue", "--noheader"))


async def test_a_command_that_fails_is_not_repeated(
    resuming: SlurmExecutor, cluster: SlurmCluster, tmp_path: Path
):
    """Its successor is removed."""
    handle = await resuming.submit(job(tmp_path, "echo tried; exit 9"), secrets={})
    status = await reach(resuming, handle, JobState.FAILED)
    assert status.exit_code == 9
    await until(lambda: not cluster.run("squeue", "--noheader"))
    assert (await said(resuming, handle)).count("tried") == 1


async def test_kill_ends_the_successor_too(
    resuming: SlurmExecutor, cluster: SlurmCluster, tmp_path: Path
):
    """Nothing is left in the queue."""
    handle = await resuming.submit(job(tmp_path, CONTINUES), secrets={})
    await until((Path(handle.folder) / "begun").exists)
    await until(lambda: "PENDING" in cluster.run("squeue", "--noheader", "--format=%T"))
    await resuming.cancel(handle)
    assert cluster.run("squeue", "--noheader") == ""
    (status,) = await resuming.statuses([handle])
    assert status.state is JobState.CANCELLED


async def test_a_job_that_waits_says_why_and_can_be_killed(cluster: SlurmCluster, tmp_path: Path):
    """In the words of Slurm."""
    slurm = executor(tmp_path, sbatch_extra_flags={"hold": True})
    handle = await slurm.submit(job(tmp_path, "true"), secrets={})
    (status,) = await slurm.statuses([handle])
    assert (status.state, status.reason) == (JobState.PENDING, "JobHeldUser")
    await slurm.cancel(handle)
    (status,) = await slurm.statuses([handle])
    assert status.state is JobState.CANCELLED


async def test_a_job_that_runs_is_not_submitted_again(cluster: SlurmCluster, tmp_path: Path):
    """Two attempts would write to one folder."""
    slurm = executor(tmp_path)
    spec = job(tmp_path, "sleep 600")
    await slurm.submit(spec, secrets={})
    with pytest.raises(JobError) as caught:
        await slurm.submit(spec, secrets={})
    assert caught.value.kind == "running"
    assert len(cluster.run("squeue", "--noheader").splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"partition": "bacth"}, "unknown_partition"),
        ({"gres": "fpga:1"}, "unknown_gres"),
        ({"gres": "gpu:64"}, "too_large"),
        ({"num_nodes": 50}, "too_large"),
        ({"walltime": "9-00:00:00"}, "time_limit"),
        ({"sbatch_extra_flags": {"constraint": "h100"}}, "unknown_feature"),
        ({"sbatch_extra_flags": {"no-such-flag": 1}}, "unknown_flag"),
    ],
)
async def test_what_slurm_refuses(cluster: SlurmCluster, tmp_path: Path, given, kind: str):
    """Each has its own kind; no job and no folder is left."""
    slurm = executor(tmp_path, **given)
    spec = job(tmp_path, "true", resources=slurm._settings.resources(gpus=0))
    with pytest.raises(JobError) as caught:
        await slurm.submit(spec, secrets={})
    assert caught.value.kind == kind, str(caught.value)
    assert caught.value.fix
    assert everything_in(tmp_path) == ""
    assert cluster.run("squeue", "--noheader") == ""


async def test_the_nearest_partition_is_named(cluster: SlurmCluster, tmp_path: Path):
    """And the others are listed."""
    slurm = executor(tmp_path, partition="bacth")
    with pytest.raises(JobError) as caught:
        await slurm.submit(job(tmp_path, "true"), secrets={})
    assert "'batch'" in str(caught.value)


async def test_a_folder_that_cannot_be_written(cluster: SlurmCluster, tmp_path: Path):
    """Nothing is submitted."""
    (tmp_path / "file").touch()
    with pytest.raises(JobError) as caught:
        await executor(tmp_path).submit(job(tmp_path / "file", "true"), secrets={})
    assert caught.value.kind == "unwritable"


async def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """To submit and to ask are refused alike."""
    for program in ("bash", "id", "mkdir"):
        place = shutil.which(program)
        assert place is not None
        (tmp_path / program).symlink_to(place)
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm, handle = (
        executor(tmp_path),
        Handle(executor="slurm", folder="/x", reference={"job": "1"}),
    )
    with pytest.raises(JobError) as caught:
        await slurm.submit(job(tmp_path, "true"), secrets={})
    assert caught.value.kind == "no_slurm"
    with pytest.raises(JobError) as caught:
        await slurm.statuses([handle])
    assert caught.value.kind == "no_slurm"


async def test_slurm_may_be_down_for_a_while(cluster: SlurmCluster, tmp_path: Path):
    """It is an error to ask then; the job runs on."""
    slurm = executor(tmp_path)
    handle = await slurm.submit(
        job(tmp_path, "touch begun; while ! test -e go; do sleep 0.1; done"), secrets={}
    )
    folder = Path(handle.folder)
    await until((folder / "begun").exists)
    cluster.stop_controller()
    try:
        with pytest.raises(JobError) as caught:
            await slurm.statuses([handle])
        assert caught.value.kind == "no_controller"
        (folder / "go").touch()
    finally:
        cluster.start_controller()
    await reach(slurm, handle, JobState.COMPLETE)


async def test_ends_are_known_after_slurm_has_forgotten_its_jobs(
    cluster: SlurmCluster, tmp_path: Path
):
    """From what the jobs wrote down."""
    slurm = executor(tmp_path)
    right = await slurm.submit(job(tmp_path, "exit 0"), secrets={})
    wrong = await slurm.submit(job(tmp_path, "exit 6"), secrets={})
    await reach(slurm, right, JobState.COMPLETE)
    await reach(slurm, wrong, JobState.FAILED)
    cluster.forget_jobs()
    statuses = await slurm.statuses([wrong, right])
    assert [(status.state, status.exit_code) for status in statuses] == [
        (JobState.FAILED, 6),
        (JobState.COMPLETE, 0),
    ]


async def test_secrets_are_in_the_environment_alone(cluster: SlurmCluster, tmp_path: Path):
    """Not in scripts, logs, `scontrol show job`, spool or `ps`, with `set -x` and a successor."""
    slurm = executor(tmp_path, max_walltime="05:00:00")
    script = "set -x; [ ${#TOKEN} -gt 9 ] && [ ${#OTHER} -gt 1 ] && touch has; sleep 600"
    spec = job(
        tmp_path,
        script,
        environment=Environment(secrets=frozenset({"TOKEN"}), from_machine={"OTHER": "SITE_KEY"}),
        before=f"export SITE_KEY=$(printf %s {SECRET[:9]}; printf %s {SECRET[9:]})\nset -x",
    )
    handle = await slurm.submit(spec, secrets={"TOKEN": SECRET})
    folder = Path(handle.folder)
    await until((folder / "has").exists)
    await until(lambda: "PENDING" in cluster.run("squeue", "--noheader", "--format=%T"))
    seen = cluster.run("scontrol", "show", "job", "--details")
    seen += "".join(" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    seen += everything_in(folder, *cluster.folder.glob("spool-*"), *cluster.folder.glob("*.log"))
    assert SECRET not in seen.replace(f"+ export SITE_KEY={SECRET}", "")
    assert "+ exec /bin/bash script.sh" in await said(slurm, handle)
    successor = cluster.run("squeue", "--noheader", "--states=PENDING", "--format=%A").strip()
    kept = cluster.folder.glob(f"state/hash.*/job.{successor}/environment")
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)


async def test_companions_have_nodes_of_their_own(cluster: SlurmCluster, tmp_path: Path):
    """They know their number, and the address of the first."""
    companion = Companion(
        name="server",
        command=("/bin/sh", "-c", 'echo "{node} $SLURMD_NODENAME {head} $WHO" > found; sleep 600'),
        environment=Environment(values={"WHO": "a companion"}),
    )
    script = "until [ -s found ]; do sleep 0.1; done; echo main $SLURMD_NODENAME; cat found"
    slurm = executor(tmp_path)
    handle = await slurm.submit(job(tmp_path, script, companions=(companion,)), secrets={})
    await reach(slurm, handle, JobState.COMPLETE)
    log = await said(slurm, handle)
    assert "main node0" in log
    assert "1 node1 127.0.0.1 a companion" in log


async def test_a_job_begins_again_without_what_the_last_attempt_left(
    cluster: SlurmCluster, tmp_path: Path
):
    """A job that was killed can be submitted again."""
    slurm = executor(tmp_path)
    spec = job(tmp_path, CONTINUES)
    first = await slurm.submit(spec, secrets={})
    await until((Path(first.folder) / "begun").exists)
    await slurm.cancel(first)
    second = await slurm.submit(spec, secrets={})
    await reach(slurm, second, JobState.COMPLETE)
    assert "continued" in await said(slurm, second)
