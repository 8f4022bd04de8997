"""The batch script of a job, and the scripts that run on its nodes. Pure: no machine is asked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import jinja2

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Artifact, Companion, Container, Environment, JobSpec
from enginehouse.jobs.executors.slurm.attempts import ATTEMPTS, CANCEL
from enginehouse.jobs.executors.slurm.settings import SlurmSettings

SCRIPT = "job.sh"
LOG = "log.txt"
JOB_VARIABLE = "ENGINEHOUSE_JOB"
"""A job's id, in its environment."""

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
        step = _step(job, companion.name, companion.container, first=relative, nodes=companion.nodes)
        companions.append({"name": companion.name, "step": step})
        relative += companion.nodes
    command = f"bash {shlex.quote(str(job.folder / _start('command')))}"
    if job.container is not None:
        command = _step(job, "command", job.container, first=0, nodes=1)
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
    )


def _flags(job: JobSpec, settings: SlurmSettings, *, walltime: int) -> Iterator[str]:
    """The flags of sbatch, as they stand in the script's head."""
    needs = job.resources
    parts = [settings.account, settings.subproject, job.name]
    name = re.sub(r"[^\w.:+-]+", "_", "-".join(part for part in parts if part))
    yield f"--job-name={name}"
    yield f"--chdir={_quoted(job.folder)}"
    yield f"--output={_quoted(str(job.folder / LOG).replace('%', '%%'))}"
    yield "--open-mode=append"
    if settings.account is not None:
        yield f"--account={settings.account}"
    if settings.partition is not None:
        yield f"--partition={settings.partition}"
    yield f"--nodes={needs.nodes + sum(one.nodes for one in job.companions)}"
    yield f"--ntasks-per-node={settings.ntasks_per_node}"
    if settings.gres is not None:
        yield f"--gres={settings.gres}"
    elif needs.gpus_per_node:
        yield f"--gpus-per-node={needs.gpus_per_node}"
    if needs.cpus_per_node is not None:
        yield f"--cpus-per-task={-(-needs.cpus_per_node // settings.ntasks_per_node)}"
    if needs.memory_gb is not None:
        yield f"--mem={round(needs.memory_gb * 1024)}M"
    yield f"--time={_time(walltime)}"
    yield f"--signal=B:USR1@{min(settings.stop_before, walltime // 2)}"
    yield "--requeue" if settings.requeue else "--no-requeue"
    if settings.sbatch_comment is not None:
        yield f"--comment={_quoted(settings.sbatch_comment)}"
    for flag, value in settings.sbatch_extra_flags.items():
        if value is True:
            yield f"--{flag.lstrip('-')}"
        elif value is not None and value is not False:
            yield f"--{flag.lstrip('-')}={_quoted(value)}"


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
    variables = {"{node}": '"$node"', "{head}": '"$ENGINEHOUSE_HEAD"'}
    parts = re.split(r"(\{node\}|\{head\})", word)
    return "".join(variables.get(part) or (shlex.quote(part) if part else "") for part in parts) or "''"


def _start(name: str) -> str:
    return f"start-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.sh"


def _time(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02}:{minutes:02}:{seconds:02}"


def _quoted(value: PurePosixPath | str | float) -> str:
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
                    f"{name!r} cannot be the name of a variable in the job's environment",
                    fix="use letters, digits and _, and begin with a letter",
                    kind="variable_name",
                )
