"""The process of a local job: `python -m enginehouse.jobs.local_process FOLDER`.

It reads what to run from the folder, and the values of secrets as JSON from its standard input;
without them it runs nothing, since then the process that submits it is gone. It ends when the
job's command does, or a companion, or the time is up, or on SIGTERM; then every process of the
job has ended, and `end.json` says how. If it is killed, reapers end the job.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from enginehouse.core.errors import EnginehouseError
from enginehouse.jobs.base import Environment, JobState
from enginehouse.processes.process import Command, Process, hold_process
from enginehouse.processes.tree import ProcessIdentity, this_process
from enginehouse.store.files import write_whole

JOB, LOG, PROCESSES, END, CANCEL = "job.json", "log.txt", "processes.json", "end.json", "cancel"
_POLL = 0.05


class LocalCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command of a job, and the variables that it gets beside those of the submitter."""

    name: str
    argv: tuple[str, ...]
    environment: Environment


class LocalJob(msgspec.Struct, frozen=True, kw_only=True):
    """The content of job.json. `walltime` and `kill_grace` are in seconds."""

    id: str
    command: LocalCommand
    companions: tuple[LocalCommand, ...]
    before: str
    walltime: int | None
    kill_grace: float


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The content of processes.json: a job's own process, those of its commands, and where."""

    supervisor: ProcessIdentity
    commands: tuple[ProcessIdentity, ...]
    host: str


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The content of end.json: how the job of that process ended."""

    supervisor: ProcessIdentity
    state: JobState
    reason: str | None = None
    exit_code: int | None = None


def read_end(folder: Path, *, supervisor: ProcessIdentity) -> End | None:
    """How the job of that process ended; None if it is not recorded."""
    try:
        end = msgspec.json.decode((folder / END).read_bytes(), type=End)
    except (OSError, msgspec.DecodeError):
        return None
    return end if end.supervisor == supervisor else None


def read_begun(folder: Path) -> Begun | None:
    """The processes of the job that was last begun in the folder."""
    try:
        return msgspec.json.decode((folder / PROCESSES).read_bytes(), type=Begun)
    except (OSError, msgspec.DecodeError):
        return None


def read_processes(folder: Path, *, supervisor: ProcessIdentity) -> Sequence[ProcessIdentity]:
    """The commands that this process runs, or ran; none if it has not begun."""
    begun = read_begun(folder)
    return begun.commands if begun and begun.supervisor == supervisor else ()


async def run_job(folder: Path, *, secrets: Mapping[str, str]) -> End:
    """Run the job in `folder` to its end. Returns when none of its processes is left."""
    job = msgspec.json.decode((folder / JOB).read_bytes(), type=LocalJob)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    supervisor = this_process()
    with ExitStack() as held:
        commands = [
            held.enter_context(
                hold_process(
                    Command(
                        argv=_argv(command, before=job.before),
                        env=_variables(command.environment, secrets),
                    ),
                    log=folder / LOG,
                )
            )
            for command in (job.command, *job.companions)
        ]
        begun = Begun(
            supervisor=supervisor,
            commands=tuple(command.identity for command in commands),
            host=socket.gethostname(),
        )
        write_whole(folder / PROCESSES, msgspec.json.encode(begun), private=True)
        processes = [command.begin() for command in commands]
    try:
        end = await _end_of(job, processes, stopped, supervisor=supervisor)
    finally:
        await asyncio.gather(*(process.stop(grace=job.kill_grace) for process in processes))
    if end.state is JobState.INTERRUPTED and (folder / CANCEL).exists():
        end = msgspec.structs.replace(end, state=JobState.CANCELLED, reason=None)
    return end


async def _end_of(
    job: LocalJob,
    processes: Sequence[Process],
    stopped: asyncio.Event,
    *,
    supervisor: ProcessIdentity,
) -> End:
    """Wait until something ends the job."""
    command, *companions = processes
    deadline = asyncio.get_running_loop().time() + (job.walltime or float("inf"))
    while True:
        if stopped.is_set():
            return End(supervisor=supervisor, state=JobState.INTERRUPTED, reason="SIGTERM")
        if (code := command.exit_code()) is not None:
            return _ending(supervisor, code)
        for companion, process in zip(job.companions, companions, strict=True):
            if (code := process.exit_code()) is not None:
                reason = f"the companion {companion.name} ended with exit code {code}"
                return End(supervisor=supervisor, state=JobState.FAILED, reason=reason)
        if asyncio.get_running_loop().time() > deadline:
            return End(supervisor=supervisor, state=JobState.INTERRUPTED, reason="TIMEOUT")
        await asyncio.sleep(_POLL)


def _ending(supervisor: ProcessIdentity, code: int) -> End:
    """How a command ended by itself: by a signal from outside, it can be resumed."""
    number = -code if code < 0 else code - 128
    if number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP):
        reason = f"ended by {signal.Signals(number).name}"
        return End(supervisor=supervisor, state=JobState.INTERRUPTED, reason=reason, exit_code=code)
    state = JobState.FAILED if code else JobState.COMPLETE
    return End(supervisor=supervisor, state=state, exit_code=code)


def _argv(command: LocalCommand, *, before: str) -> tuple[str, ...]:
    if not before:
        return command.argv
    return ("/bin/sh", "-c", f'{before}\nexec "$@"', "sh", *command.argv)


def _variables(environment: Environment, secrets: Mapping[str, str]) -> dict[str, str]:
    from_machine = {
        name: os.environ[source]
        for name, source in environment.from_machine.items()
        if source in os.environ
    }
    hidden = {name: secrets[name] for name in environment.secrets}
    return {**os.environ, **from_machine, **environment.values, **hidden}


def main(argv: Sequence[str]) -> int:
    """Run the job of the folder that `argv` names."""
    folder = Path(argv[0])
    given = sys.stdin.buffer.read()
    if not given:
        return os.EX_UNAVAILABLE
    os.chdir(folder)
    supervisor = this_process()
    try:
        end = asyncio.run(run_job(folder, secrets=msgspec.json.decode(given)))
    except EnginehouseError as error:
        sys.stderr.write(f"error: {error}\n")
        end = End(supervisor=supervisor, state=JobState.FAILED, reason=error.message)
    write_whole(folder / END, msgspec.json.encode(end), private=True)
    return os.EX_OK


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
