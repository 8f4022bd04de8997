"""The conformance suite of executors: what every Executor must do, as named cases.

Every executor that can run jobs on the machine of its tests passes it, and so does the fake. The
jobs are small shell scripts, so that the suite says nothing about engines.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import psutil

from enginehouse.core.errors import EnginehouseError
from enginehouse.jobs.base import (
    Companion,
    Environment,
    Handle,
    JobSpec,
    JobState,
    JobStatus,
    Resources,
)
from enginehouse.jobs.executors.base import Executor, SupportsRecovery

SECRET = "hf_a_value_that_must_not_be_seen_anywhere"
_POLL = 0.1
Case = Callable[["Subject"], Awaitable[None]]
CASES: dict[str, Case] = {}


class CaseFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A case that failed, and how."""

    name: str
    detail: str


def lives_here(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def check_executor(
    make: Callable[[], Executor],
    *,
    folder: PurePosixPath,
    patience: float = 60.0,
    lives: Callable[[int], bool] = lives_here,
    only: Collection[str] | None = None,
) -> list[CaseFailure]:
    """Run the cases (or those named) one after another, each with jobs of its own.

    `make` gives an executor that is not open yet; cases open several, as several launchers do.
    `folder` is where jobs may have their folders, on the machine where they run. `patience` is the
    longest time in seconds for anything to happen. `lives` says whether a pid that a job wrote down
    runs. Returns those that failed; a case never raises, and cancels what it submitted.
    """
    failures = []
    for name, run in CASES.items():
        if only is not None and name not in only:
            continue
        subject = Subject(make=make, folder=folder / name, patience=patience, lives=lives)
        async with AsyncExitStack() as stack:
            subject.executor = await stack.enter_async_context(make())
            try:
                await run(subject)
            except (AssertionError, EnginehouseError) as error:
                promise = " ".join((run.__doc__ or "").split())
                detail = f"{promise} {type(error).__name__}: {error}"
                failures.append(CaseFailure(name=name, detail=detail))
            finally:
                await subject.clear()
    return failures


@dataclass
class Subject:
    """The executor under test, and the jobs of one case."""

    make: Callable[[], Executor]
    folder: PurePosixPath
    patience: float
    lives: Callable[[int], bool]
    executor: Executor = field(init=False)
    _handles: list[Handle] = field(default_factory=list)

    def job(self, script: str, **changes: Any) -> JobSpec:
        """A job that runs `script`, a file beside it, in a folder of its own."""
        number = secrets.token_hex(8)
        files = {"script.sh": script, **changes.pop("files", {})}
        return JobSpec(
            id=number,
            name=f"check-{number}",
            folder=self.folder / number,
            command=("/bin/sh", "script.sh"),
            files=files,
            **changes,
        )

    async def submit(self, job: JobSpec, *, values: Mapping[str, str] | None = None) -> Handle:
        """Submit a job that the case's end cancels."""
        handle = await self.executor.submit(job, secrets=values or {})
        self._handles.append(handle)
        return handle

    async def status(self, handle: Handle) -> JobStatus:
        """Where one job is."""
        (status,) = await self.executor.statuses([handle])
        return status

    async def reach(self, handle: Handle, *states: JobState) -> JobStatus:
        """Wait until the job is in one of `states`; in another one in which it has ended, fail."""
        deadline = time.monotonic() + self.patience
        while (status := await self.status(handle)).state not in states:
            assert not status.state.ended, f"it ended as {status}:\n{await self.log(handle)}"
            assert time.monotonic() < deadline, f"after {self.patience} s it is {status}"
            await asyncio.sleep(_POLL)
        return status

    async def log(self, handle: Handle) -> str:
        """What the job has said so far."""
        return "".join([piece async for piece in self.executor.logs(handle, follow=False)])

    async def until(self, handle: Handle, text: str) -> str:
        """Wait until the job has said `text`; gives what it said until then."""
        deadline = time.monotonic() + self.patience
        while True:
            status = await self.status(handle)
            with suppress(EnginehouseError):  # a job that waits may have no log yet
                if text in (said := await self.log(handle)):
                    return said
            assert not status.state.ended, f"it ended as {status} before it said {text!r}"
            assert time.monotonic() < deadline, f"after {self.patience} s: no {text!r}"
            await asyncio.sleep(_POLL)

    async def gone(self, pids: Sequence[int]) -> None:
        """Assert that none of these processes runs; what was killed may take a moment to go."""
        deadline = time.monotonic() + 5.0
        while left := [pid for pid in pids if self.lives(pid)]:
            assert time.monotonic() < deadline, f"still running: {left}"
            await asyncio.sleep(_POLL)

    async def clear(self) -> None:
        """Cancel every job of the case."""
        for handle in self._handles:
            with suppress(EnginehouseError):
                await self.executor.cancel(handle)


def case(run: Case) -> Case:
    """Register a case under its own name."""
    CASES[run.__name__] = run
    return run


@case
async def completes(subject: Subject) -> None:
    """A command that ends with exit code 0 is complete; its output is its log."""
    job = subject.job("cat note.txt; echo to-stderr >&2", files={"note.txt": "from the file\n"})
    handle = await subject.submit(job)
    status = await subject.reach(handle, JobState.COMPLETE)
    assert status.exit_code in (0, None), status
    said = await subject.log(handle)
    assert "from the file" in said, said
    assert "to-stderr" in said, said


@case
async def fails_with_the_exit_code(subject: Subject) -> None:
    """A command that ends with another exit code has failed, with that code."""
    handle = await subject.submit(subject.job("exit 4"))
    status = await subject.reach(handle, JobState.FAILED)
    assert status.exit_code == 4, status


@case
async def gets_its_environment(subject: Subject) -> None:
    """The command has its values, and the machine's under other names; `before` runs first."""
    job = subject.job(
        'echo "<$GREETING> <$OTHER_PATH> <$FROM_BEFORE>"; test "$OTHER_PATH" = "$PATH"',
        environment=Environment(
            values={"GREETING": """two words, "quotes" and $NAME 'x'"""},
            from_machine={"OTHER_PATH": "PATH"},
        ),
        before="FROM_BEFORE=prepared\nexport FROM_BEFORE",
    )
    handle = await subject.submit(job)
    await subject.reach(handle, JobState.COMPLETE)
    said = await subject.log(handle)
    assert """<two words, "quotes" and $NAME 'x'>""" in said, said
    assert "<prepared>" in said, said


@case
async def keeps_secrets(subject: Subject) -> None:
    """A secret reaches the command, and is seen nowhere else.

    Not in what is rendered, not in the handle, in no file of the job, and in no command line.
    """
    script = f'test "$TOKEN" = {SECRET[:20]}"{SECRET[20:]}" && echo has it; sleep 1'
    job = subject.job(script, environment=Environment(secrets=frozenset({"TOKEN"})))
    rendered = "".join(artifact.text for artifact in subject.executor.render(job))
    assert SECRET not in rendered, rendered
    handle = await subject.submit(job, values={"TOKEN": SECRET})
    assert SECRET not in repr(handle), handle
    await subject.until(handle, "has it")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            assert SECRET not in " ".join(process.cmdline()), process
    await subject.reach(handle, JobState.COMPLETE)
    with tempfile.TemporaryDirectory() as into:
        folder = await subject.executor.fetch(handle, Path(into))
        for path in folder.rglob("*"):
            if path.is_file():
                assert SECRET.encode() not in path.read_bytes(), path


@case
async def kill_leaves_nothing(subject: Subject) -> None:
    """A cancelled job has no process left, not even one with a session of its own."""
    script = (
        "trap '' TERM\nsetsid sleep 600 &\necho pid $! end\nsleep 600 &\necho pid $! end\n"
        "echo pid $$ end\nwait\nwait"
    )
    handle = await subject.submit(subject.job(script))
    said = ""
    while said.count("end") < 3:
        said = await subject.until(handle, "end")
    pids = [int(line.split()[1]) for line in said.splitlines() if line.startswith("pid ")]
    await subject.reach(handle, JobState.RUNNING)
    await subject.executor.cancel(handle)
    status = await subject.status(handle)
    assert status.state is JobState.CANCELLED, status
    await subject.gone(pids)
    await subject.executor.cancel(handle)  # idempotent


@case
async def kill_changes_no_end(subject: Subject) -> None:
    """Cancelling a job that has ended leaves its state as it was."""
    handle = await subject.submit(subject.job("exit 5"))
    await subject.reach(handle, JobState.FAILED)
    await subject.executor.cancel(handle)
    assert (await subject.status(handle)).state is JobState.FAILED


@case
async def logs_follow(subject: Subject) -> None:
    """Followed, a log is read while the job runs, and ends with the job."""
    job = subject.job(
        "echo first; while ! test -e go; do sleep 0.1; done; echo last",
        files={"empty": ""},
    )
    handle = await subject.submit(job)
    await subject.until(handle, "first")
    await subject.reach(handle, JobState.RUNNING)
    said = ""
    async with asyncio.timeout(subject.patience):
        async for piece in subject.executor.logs(handle, follow=True):
            said += piece
            if "first" in said and "last" not in said:
                assert (await subject.status(handle)).state is JobState.RUNNING
                await subject.submit(subject.job(f"touch '{job.folder}/go'"))
                break
        said = ""
        async for piece in subject.executor.logs(handle, follow=True):
            said += piece
    assert said.count("first") == said.count("last") == 1, said
    await subject.reach(handle, JobState.COMPLETE)


@case
async def resumes(subject: Subject) -> None:
    """Submitted again, a job finds in its folder what it did before."""
    script = "test -e done.txt && echo again && exit 0; touch done.txt; exit 3"
    job = subject.job(script)
    first = await subject.submit(job)
    await subject.reach(first, JobState.FAILED)
    second = await subject.submit(job)
    status = await subject.reach(second, JobState.COMPLETE)
    assert status.exit_code in (0, None), status
    assert "again" in await subject.log(second)


@case
async def is_found_again(subject: Subject) -> None:
    """A launcher that was killed before it noted the handle finds its job, and no other one."""
    job = subject.job("sleep 60")
    handle = await subject.submit(job)
    async with subject.make() as launcher:
        if isinstance(launcher, SupportsRecovery):
            assert await launcher.find(job) == handle
            assert await launcher.find(subject.job("exit 0")) is None


@case
async def two_launchers_at_once(subject: Subject) -> None:
    """Several launchers submit at the same time; a third one sees all jobs, in their order."""
    codes = (0, 1, 0, 1)
    async with subject.make() as one, subject.make() as two, subject.make() as reader:
        jobs = [subject.job(f"exit {code}") for code in codes]
        handles = await asyncio.gather(
            *((one, two)[n % 2].submit(job, secrets={}) for n, job in enumerate(jobs))
        )
        subject._handles.extend(handles)  # noqa: SLF001 - submitted by others
        deadline = time.monotonic() + subject.patience
        while True:
            states = [status.state for status in await reader.statuses(handles)]
            if all(state.ended for state in states):
                break
            assert time.monotonic() < deadline, states
            await asyncio.sleep(_POLL)
    assert states == [JobState.FAILED if code else JobState.COMPLETE for code in codes], states


@case
async def companions_live_as_long_as_the_command(subject: Subject) -> None:
    """A companion runs beside the command, knows its node, and ends with the command."""
    script = "while ! test -e companion.txt; do sleep 0.1; done; cat companion.txt"
    companion = Companion(
        name="server",
        command=("/bin/sh", "-c", "echo pid $$ node {node} > new; mv new companion.txt; sleep 600"),
    )
    job = subject.job(script, companions=(companion,), resources=Resources(nodes=1))
    handle = await subject.submit(job)
    await subject.reach(handle, JobState.COMPLETE)
    words = (await subject.log(handle)).split()
    assert words[words.index("node") + 1] == "1", words
    await subject.gone([int(words[words.index("pid") + 1])])


@case
async def the_log_has_what_companions_print(subject: Subject) -> None:
    """Also what they printed just before the command ended, and what they print while ending."""
    script = "trap 'echo last words; exit 0' TERM; echo first words; touch ready; "
    script += "while :; do sleep 0.2; done"  # the signal may come to sleep first
    companion = Companion(name="server", command=("/bin/sh", "-c", script))
    command = "while ! test -e ready; do sleep 0.1; done; seq 10000"
    handle = await subject.submit(subject.job(command, companions=(companion,)))
    await subject.reach(handle, JobState.COMPLETE)
    said = await subject.log(handle)
    assert "\n10000\n" in said, said[-600:]
    assert "first words" in said, said
    assert "last words" in said, said


@case
async def a_companion_that_ends_fails_the_job(subject: Subject) -> None:
    """If a companion ends by itself, even with exit code 0, the job fails at once."""
    companion = Companion(name="server", command=("/bin/sh", "-c", "exit 0"))
    started = time.monotonic()
    handle = await subject.submit(subject.job("echo pid $$; sleep 600", companions=(companion,)))
    await subject.reach(handle, JobState.FAILED)
    assert time.monotonic() - started < subject.patience
    words = (await subject.log(handle)).split()
    if "pid" in words:
        await subject.gone([int(words[words.index("pid") + 1])])
