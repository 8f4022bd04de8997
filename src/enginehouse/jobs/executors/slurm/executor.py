"""Jobs on a Slurm cluster, with sbatch on this machine or on a login node.

Each script is read by a bash from its standard input, so that the values of secrets are in no
command line and no file. They reach the job in the environment of sbatch.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import shlex
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from enginehouse.core.errors import JobError
from enginehouse.core.system_errors import worded
from enginehouse.jobs.base import Artifact, Handle, JobSpec, JobState, JobStatus
from enginehouse.jobs.executors.base import still_running
from enginehouse.jobs.executors.slurm.attempts import (
    ATTEMPTS,
    CANCEL,
    QueueEntry,
    read_attempts,
    status_of,
)
from enginehouse.jobs.executors.slurm.login_node import Finished, LoginNode
from enginehouse.jobs.executors.slurm.refusals import no_answer, no_programs, refusal
from enginehouse.jobs.executors.slurm.script import (
    LOG,
    QUEUE,
    ExitCode,
    sbatch,
    scripts,
    submission,
)
from enginehouse.jobs.executors.slurm.settings import SlurmSettings
from enginehouse.runtime.context import Context

_POLL = 0.5  # seconds between looks at a job, and
_POLL_REMOTE = 3.0  # on a login node
_FETCH = 1800.0  # seconds to copy a job's folder
_CANCEL = 180.0  # seconds until a cancelled job has ended; Slurm's own KillWait is 30 by default


class SlurmExecutor:
    """Submits jobs to Slurm."""

    name = "slurm"
    settings_class = SlurmSettings

    def __init__(self, settings: SlurmSettings, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._login = LoginNode(
            settings.hostname, username=settings.username, options=settings.ssh_options
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._login.__aexit__(*exc)

    def render(self, job: JobSpec) -> Sequence[Artifact]:
        """The job's files, its scripts, and the command line that submits it."""
        words = shlex.join(sbatch(job))
        if self._login.hostname is not None:
            words = f"{shlex.join(self._login.command_line())}  # reads: {words}"
        return [
            *(Artifact(name=name, text=text) for name, text in job.files.items()),
            *scripts(job, self._settings),
            Artifact(name="submission", text=f"{words}\n"),
        ]

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Queue the job. Raises JobError, whose kind says what Slurm objects to."""
        finished = await self._login.run(submission(job, self._settings, secrets))
        if finished.code != 0:
            raise await self._submit_error(job, finished)
        match = re.search(r"^(\d+)(;\S+)?$", finished.text.strip(), re.MULTILINE)
        if match is None:
            raise JobError(
                f"the submitted job's id could not be read: sbatch on {self._login.place} printed"
                f" {finished.text.strip()[:200]!r}",
                fix=f"`squeue --me` shows it; its folder is {job.folder}",
                kind="no_id",
            )
        return Handle(executor=self.name, folder=str(job.folder), reference={"job": match[1]})

    async def find(self, job: JobSpec) -> Handle | None:
        """From Slurm's queue, or from what the job wrote down when it began."""
        folder = str(job.folder)
        finished = await self._login.run(_statuses_script([folder]))
        if finished.code != 0:
            raise no_answer(finished, self._login)
        queue, _, record = finished.text.partition("\nfolder|")
        attempts = read_attempts(record.partition("\n")[2], first=0)
        known = [one.job for one in (*_entries(queue).get(folder, ()), *attempts)]
        if not known:
            return None
        return Handle(executor=self.name, folder=folder, reference={"job": str(min(known))})

    async def statuses(self, handles: Sequence[Handle]) -> Sequence[JobStatus]:
        """Asks Slurm once for all jobs, and reads what they wrote down themselves."""
        if not handles:
            return []
        finished = await self._login.run(_statuses_script([handle.folder for handle in handles]))
        if finished.code != 0:
            raise no_answer(finished, self._login)
        queue, _, records = finished.text.partition("\nfolder|")
        entries = _entries(queue)
        parts = records.split("\nfolder|")
        return [
            _status(handle, entries.get(handle.folder, ()), part)
            for handle, part in zip(handles, parts, strict=True)
        ]

    async def logs(self, handle: Handle, *, follow: bool) -> AsyncIterator[str]:
        """The log of all attempts of the job; with `follow`, until it has ended."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        log, offset = f"{handle.folder}/{LOG}", 0
        while True:
            # Before reading: nothing is lost.
            ended = not follow or (await self.statuses([handle]))[0].state.ended
            script = f"tail --bytes=+{offset + 1} -- {shlex.quote(log)} 2> /dev/null"
            content = (await self._login.run(script)).out
            offset += len(content)
            if content:
                yield decoder.decode(content)
            if ended:
                return
            await asyncio.sleep(self._poll)

    async def fetch(self, handle: Handle, into: Path) -> Path:
        """The job's own folder where sbatch runs here; otherwise a copy in `into`."""
        if self._login.hostname is None:
            return Path(handle.folder)
        script = f"cd -- {shlex.quote(handle.folder)} && tar --create --gzip --file=- ."
        finished = await self._login.run(script, patience=_FETCH)
        if finished.code != 0:
            raise JobError(
                f"the folder of the job could not be read on {self._login.place}",
                why=finished.err.strip()[-600:],
                fix=f"check {handle.folder} there",
                kind="no_folder",
            )
        try:
            await asyncio.to_thread(_unpack, finished.out, into)
        except OSError as error:
            raise worded(error) from error
        return into

    async def cancel(self, handle: Handle) -> None:
        """Cancel the job and the successors of it that wait, and see them gone."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CANCEL
        while live := await self._cancel_once(handle):
            if loop.time() > deadline:
                raise JobError(
                    f"Slurm has not ended the job after {_CANCEL:.0f} s",
                    why=", ".join(f"job {entry.job} is {entry.state}" for entry in live),
                    fix="its node may be down: check it with `scontrol show job`, or contact the "
                    "cluster's support",
                    kind="not_cancelled",
                )
            await asyncio.sleep(self._poll)

    @property
    def _poll(self) -> float:
        return _POLL if self._login.hostname is None else _POLL_REMOTE

    async def _cancel_once(self, handle: Handle) -> Sequence[QueueEntry]:
        """Cancel what is left of the job. Returns it, as it was before."""
        folder, first = handle.folder, int(handle.reference["job"])
        mark = shlex.quote(f"{folder}/{CANCEL}")
        finished = await self._login.run(
            f"[ ! -d {shlex.quote(folder)} ] || : > {mark}\n{QUEUE} || exit {ExitCode.NO_ANSWER}\n"
        )
        if finished.code != 0:
            raise no_answer(finished, self._login)
        entries = _entries(finished.text).get(folder, ())
        live = [entry for entry in entries if entry.is_live and entry.job >= first]
        if ids := [str(entry.job) for entry in live if entry.state != "COMPLETING"]:
            await self._login.run(f"scancel {' '.join(ids)}")
        return live

    async def _submit_error(self, job: JobSpec, finished: Finished) -> JobError:
        if finished.code == ExitCode.RUNNING:
            number = finished.err.split()[-1]
            return still_running(
                f"the job in {job.folder} is still running or waiting, as Slurm job {number}"
            )
        if finished.code == ExitCode.UNWRITABLE:
            return JobError(
                f"the folder of the job could not be written on {self._login.place}",
                why=finished.err.strip()[-600:],
                fix="check `execution.output_dir`, its permissions, and its free disk space",
                kind="unwritable",
            )
        if finished.code == ExitCode.NO_SLURM:
            return no_programs(self._login)
        if finished.code == ExitCode.NO_ANSWER:
            return no_answer(finished, self._login)
        return await refusal(finished, self._settings, self._login)


def _statuses_script(folders: Sequence[str]) -> str:
    """Prints the queue, and for each folder `folder|`, its marks, and its attempts."""
    words = " ".join(shlex.quote(folder) for folder in folders)
    return f"""\
{QUEUE} || exit {ExitCode.NO_ANSWER}
for folder in {words}; do
  printf '\\nfolder|'
  [ -d "$folder" ] || printf gone
  [ ! -e "$folder/{CANCEL}" ] || printf cancelled
  printf '\\n'
  [ ! -r "$folder/{ATTEMPTS}" ] || printf '%s\\n' "$(< "$folder/{ATTEMPTS}")"
done
"""


def _entries(queue: str) -> dict[str, list[QueueEntry]]:
    """The jobs of the queue by their folders."""
    entries: dict[str, list[QueueEntry]] = {}
    for line in queue.splitlines():
        if line.startswith("job|"):
            _, job, state, reason, folder = line.split("|", 4)
            entries.setdefault(folder, []).append(QueueEntry(int(job), state, reason))
    return entries


def _status(handle: Handle, entries: Sequence[QueueEntry], record: str) -> JobStatus:
    mark, _, text = record.partition("\n")
    first = int(handle.reference["job"])
    status = status_of(entries, read_attempts(text, first=first), first=first)
    if mark == "cancelled" and status.state in (JobState.INTERRUPTED, JobState.UNKNOWN):
        return JobStatus(state=JobState.CANCELLED, exit_code=status.exit_code)
    if mark == "gone" and status.state is JobState.UNKNOWN:
        return JobStatus(state=JobState.UNKNOWN, reason="its folder is gone")
    return status


def _unpack(archive: bytes, into: Path) -> None:
    import io

    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as packed:
        packed.extractall(into, filter="data")
