"""The batch script of a job, and the scripts that run on its nodes. Pure: no machine is asked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path

import jinja2

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Artifact, Environment, JobSpec
from enginehouse.jobs.executors.slurm.attempts import ATTEMPTS, CANCEL
from enginehouse.jobs.executors.slurm.settings import Container, SlurmSettings

SCRIPT = "job.sh"
LOG = "log.txt"
JOB_VARIABLE = "ENGINEHOUSE_JOB"
"""A job's id, in its environment."""

QUEUE = 'squeue --noheader --states=all --user="$(id -un)" --format="job|%A|%T|%r|%Z"'
"""Prints a line for each job of the user: its id, state, reason and folder."""


class ExitCode(IntEnum):
    """Those of the scripts that run on the login node."""

    RUNNING = 81
    UNWRITABLE = 82
    NO_SLURM = 83
    REFUSED = 84
    NO_ANSWER = 85


_LIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "STOPPED")
_STOP_GRACE = 60  # seconds for companions to stop their servers
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=False,  # noqa: S701 - shell, where `quote` is the escape
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["quote"] = lambda text: shlex.quote(str(text))


def scripts(job: JobSpec, settings: SlurmSettings) -> Sequence[Artifact]:
    """The batch script, `job.sh`, and a script for each command that it starts.

    Raises JobError for a name that a shell cannot have as a variable's.
    """
    _require_names(job)
    batch = Artifact(name=SCRIPT, text=_batch_script(job, settings))
    command = Artifact(
        name=_start("command"),
        text=_start_script(job, shlex.join(job.command), job.environment, number="0"),
    )
    node, companions = job.resources.nodes, []
    for companion in job.companions:
        words = " ".join(_word(word) for word in companion.command)
        number = f"$(({node} + SLURM_NODEID))"
        text = _start_script(job, words, companion.environment, number=number)
        companions.append(Artifact(name=_start(companion.name), text=text))
        node += companion.nodes
    return [batch, command, *companions]


def sbatch(job: JobSpec) -> Sequence[str]:
    """The command line that submits the script."""
    return ("sbatch", "--parsable", f"--export={exported(job)}", str(job.folder / SCRIPT))


def submission(job: JobSpec, settings: SlurmSettings, secrets: Mapping[str, str]) -> str:
    """Shell that writes the job's files and submits it. It has the values of `secrets`.

    Prints the id of the Slurm job, or ends with an ExitCode.
    """
    artifacts = scripts(job, settings)
    texts = {artifact.name: artifact.text for artifact in artifacts} | dict(job.files)
    flags = re.findall(r"^#SBATCH --([a-z-]+)", artifacts[0].text, re.MULTILINE)
    overriding = {f"SBATCH_{flag.upper().replace('-', '_')}" for flag in flags}
    return _TEMPLATES.get_template("submit.sh.jinja").render(
        folder=job.folder,
        folders=sorted({shlex.quote(str((job.folder / name).parent)) for name in texts}),
        files={job.folder / name: text for name, text in texts.items()},
        values={JOB_VARIABLE: job.id, **secrets},
        overriding=sorted({*overriding, "SBATCH_TIMELIMIT", "SBATCH_NO_REQUEUE", "SBATCH_REQUEUE"}),
        sbatch=shlex.join(sbatch(job)),
        queue=QUEUE,
        live=_LIVE,
        attempts=ATTEMPTS,
        cancel=CANCEL,
        codes=ExitCode,
    )


def exported(job: JobSpec) -> str:
    """The variables that sbatch passes to the job, by name: secrets, and the job's id.

    The values are in the environment of sbatch alone.
    """
    environments = (job.environment, *(one.environment for one in job.companions))
    return ",".join([JOB_VARIABLE, *sorted(set().union(*(e.secrets for e in environments)))])


def _batch_script(job: JobSpec, settings: SlurmSettings) -> str:
    walltime = job.resources.walltime or settings.walltime
    relative, companions = job.resources.nodes, []
    for companion in job.companions:
        step = _step(
            job,
            companion.name,
            settings.container,
            first=relative,
            nodes=companion.nodes,
        )
        companions.append({"name": companion.name, "step": step})
        relative += companion.nodes
    command = f"bash {shlex.quote(str(job.folder / _start('command')))}"
    if (container := settings.container) is not None:
        command = _step(job, "command", container, first=0, nodes=1)
    return _TEMPLATES.get_template("job.sh.jinja").render(
        flags=list(_flags(job, settings, walltime=walltime)),
        title=f"Enginehouse job {job.id}: {' '.join(job.name.split())}",
        folder=job.folder,
        attempts=ATTEMPTS,
        cancel=CANCEL,
        script=SCRIPT,
        exported=exported(job),
        walltime=walltime,
        max_walltime=settings.max_walltime,
        previous_matters=settings.max_walltime is not None,
        command=command,
        companions=companions,
        stop_grace=_STOP_GRACE,
    )


def _flags(job: JobSpec, settings: SlurmSettings, *, walltime: int) -> Iterator[str]:
    """The flags of sbatch, as they stand in the script's head. Those of the user win."""
    needs, tasks = job.resources, settings.ntasks_per_node
    warning = min(settings.stop_before, walltime // 2)
    parts = [settings.account, settings.subproject, job.name]
    flags: dict[str, str | float | bool | None] = {
        "job-name": re.sub(r"[^\w.:+-]+", "_", "-".join(part for part in parts if part)),
        "chdir": str(job.folder),
        "output": str(job.folder / LOG).replace("%", "%%"),
        "open-mode": "append",
        "account": settings.account,
        "partition": settings.partition,
        "nodes": needs.nodes + sum(one.nodes for one in job.companions),
        "ntasks-per-node": tasks,
        "gres": settings.gres,
        "gpus-per-node": None if settings.gres else needs.gpus_per_node or None,
        "cpus-per-task": needs.cpus_per_node and -(-needs.cpus_per_node // tasks),
        "mem": needs.memory_gb and f"{round(needs.memory_gb * 1024)}M",
        "time": _time(walltime),
        "signal": f"B:USR1@{warning}" if warning else None,
        "requeue" if settings.requeue else "no-requeue": True,
        "comment": settings.sbatch_comment,
    }
    flags |= {name.lstrip("-"): value for name, value in settings.sbatch_extra_flags.items()}
    for name, value in flags.items():
        if value is True:
            yield f"--{name}"
        elif value is not None and value is not False:
            yield f"--{name}={_quote(value)}"


def _step(job: JobSpec, name: str, container: Container | None, *, first: int, nodes: int) -> str:
    """The srun that runs a start script once on each of these nodes of the job."""
    words = ["srun", "--export=ALL", f"--nodes={nodes}", f"--ntasks={nodes}"]
    words += ["--ntasks-per-node=1", f"--relative={first}", "--overlap", "--kill-on-bad-exit=1"]
    if container is not None:
        mounts = {str(job.folder): str(job.folder), **container.mounts}
        words += [
            f"--container-image={container.image}",
            f"--container-mounts={','.join(f'{out}:{into}' for out, into in mounts.items())}",
            f"--container-workdir={job.folder}",
            f"--container-env={exported(job)}",
            "--container-mount-home" if container.mount_home else "--no-container-mount-home",
        ]
    return shlex.join([*words, "bash", str(job.folder / _start(name))])


def _start_script(job: JobSpec, words: str, environment: Environment, *, number: str) -> str:
    """Shell that gets a node ready and becomes the command; `number` is the node's in the job.

    A user's `set -x` shows no value that was read on the machine: it may be a secret.
    """
    lines = ["#!/bin/bash", f"cd {shlex.quote(str(job.folder))} || exit"]
    lines += [job.before.rstrip()] if job.before.strip() else []
    if environment.from_machine:
        lines += ["{ trace=${-//[^x]/}; set +x; } 2> /dev/null"]
        lines += [
            f'export {name}="${{{source}?is not set where the job runs}}"'
            for name, source in environment.from_machine.items()
        ]
        lines += ['[ -z "$trace" ] || set -x']
    lines += [f"export {name}={shlex.quote(v)}" for name, v in environment.values.items()]
    if '"$node"' in words:
        lines += [f"node={number}"]
    return "\n".join([*lines, f"exec {words}", ""])


def _word(word: str) -> str:
    """A companion's word in shell, with its node's number and the name of the first node."""
    variables = {"{node}": '"$node"', "{head}": '"$head_address"'}
    parts = re.split(r"(\{node\}|\{head\})", word)
    return (
        "".join(variables.get(part) or (shlex.quote(part) if part else "") for part in parts)
        or "''"
    )


def _start(name: str) -> str:
    return f"start-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.sh"


def _time(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02}:{minutes:02}:{seconds:02}"


def _quote(value: str | float) -> str:
    """A value in a #SBATCH line, where a backslash escapes only quotes and itself."""
    text = str(value)
    if re.fullmatch(r"[\w./:,=@%+-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _require_names(job: JobSpec) -> None:
    environments = (job.environment, *(one.environment for one in job.companions))
    for environment in environments:
        machine = environment.from_machine
        for name in (*environment.values, *environment.secrets, *machine, *machine.values()):
            if not _NAME.fullmatch(name):
                raise JobError(
                    f"{name!r} is not a valid name for an environment variable",
                    fix="use letters, digits and _, and begin with a letter",
                    kind="variable_name",
                )
