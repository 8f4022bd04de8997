"""What sbatch says when it refuses a job, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.core.errors import JobError, nearest
from enginehouse.jobs.executors.slurm.login_node import Finished, LoginNode
from enginehouse.jobs.executors.slurm.settings import SlurmSettings

_ASSOCIATIONS = 'sacctmgr --noheader --parsable2 show associations user="$(id -un)" format='


@dataclass(frozen=True)
class _Refusal:
    """Words of sbatch, in lower case; `list_known` is a command that prints what there is."""

    words: tuple[str, ...]
    kind: str
    fix: str
    list_known: str | None = None


# The most specific first: sbatch explains some of them in a second line.
_REFUSALS = (
    _Refusal(
        ("unable to contact slurm controller", "could not establish a configuration source"),
        "no_controller",
        "Slurm is down, or not configured here; check with `scontrol ping`",
    ),
    _Refusal(
        ("unable to resolve", "connection refused", "unable to connect", "socket timed out"),
        "no_controller",
        "Slurm is down; `scontrol ping` shows when it is back",
    ),
    _Refusal(
        ("violates accounting/qos policy", "too many jobs"),
        "over_limit",
        "the account has reached its limits: ask for less, wait, or contact the cluster's support",
    ),
    _Refusal(
        ("invalid account or account/partition",),
        "unknown_account",
        "set `execution.account` to one that may use the partition",
        f"{_ASSOCIATIONS}account",
    ),
    _Refusal(
        ("invalid partition",),
        "unknown_partition",
        "set `execution.partition`",
        "sinfo --noheader --format=%R",
    ),
    _Refusal(
        ("invalid qos",),
        "unknown_qos",
        "set `qos` in `execution.sbatch_extra_flags`",
        f"{_ASSOCIATIONS}qos | tr , '\\n'",
    ),
    _Refusal(
        ("(gres) specification", "invalid gres", "(tres) specification"),
        "unknown_gres",
        "set `execution.gres`",
        "sinfo --noheader --format='%R has %G'",
    ),
    _Refusal(
        ("time limit",),
        "time_limit",
        "lower `execution.walltime`",
        "sinfo --noheader --format='%R allows %l'",
    ),
    _Refusal(
        ("more processors", "node count", "memory required", "memory specification"),
        "too_large",
        "ask for fewer nodes, GPUs, CPUs or less memory",
        "sinfo --noheader --format='%R has %D nodes with %c CPUs, %m MB and %G'",
    ),
    _Refusal(
        ("node configuration is not available",),
        "too_large",
        "no node of the partition has what the job asks for; ask for less",
        "sinfo --noheader --format='%R has %D nodes with %c CPUs, %m MB and %G'",
    ),
    _Refusal(
        ("invalid feature",),
        "unknown_feature",
        "set `constraint` in `execution.sbatch_extra_flags`",
        "sinfo --noheader --format=%f | tr , '\\n'",
    ),
    _Refusal(
        ("unrecognized option", "invalid option", "unrecognized long option"),
        "unknown_flag",
        "correct `execution.sbatch_extra_flags`; `man sbatch` lists the flags",
    ),
    _Refusal(
        ("access/permission denied", "not permitted"),
        "permission",
        "contact the cluster's support for access to the partition",
    ),
)


async def refusal(finished: Finished, settings: SlurmSettings, login: LoginNode) -> JobError:
    """The error for a job that sbatch did not take. Asks Slurm what there is instead."""
    said = finished.err.lower()
    known = next((r for r in _REFUSALS if any(words in said for words in r.words)), None)
    kind, fix = (known.kind, known.fix) if known else ("refused", "`man sbatch` explains the flags")
    if known is not None and known.list_known is not None:
        choices = await _choices(login, known.list_known)
        wanted = {"unknown_partition": settings.partition, "unknown_account": settings.account}
        close = nearest(wanted.get(kind) or "", choices)
        fix += f"; did you mean {close!r}?" if close else ""
        fix += f" (there is: {'; '.join(choices)})" if choices else ""
    return JobError(
        f"Slurm on {login.place} rejected the job",
        why=_reason(finished.err),
        fix=fix,
        kind=kind,
    )


def no_answer(finished: Finished, login: LoginNode) -> JobError:
    """The error for a program of Slurm that only asks, and failed."""
    if finished.code == 127 or "command not found" in finished.err:
        return no_programs(login)
    return JobError(
        f"Slurm on {login.place} does not answer",
        why=_reason(finished.err),
        fix="the jobs are not affected; `scontrol ping` shows when it is back",
        kind="no_controller",
    )


def no_programs(login: LoginNode) -> JobError:
    """The error where there is no sbatch."""
    return JobError(
        f"Slurm's programs were not found on {login.place}",
        why="sbatch is not in the PATH of a shell that is not interactive",
        fix="set `execution.hostname` to the cluster's login node"
        if login.hostname is None
        else "have ~/.bashrc on the login node add them to the PATH",
        kind="no_slurm",
    )


async def _choices(login: LoginNode, command: str) -> list[str]:
    """What there is to choose from; nothing if Slurm does not tell."""
    finished = await login.run(f"{command} 2> /dev/null")
    lines = (line.strip() for line in finished.text.splitlines())
    return sorted({line for line in lines if line and "(null)" not in line})


def _reason(said: str) -> str:
    lines = (line.strip().removeprefix("sbatch: ") for line in said.splitlines())
    lines = (line.removeprefix("error: ").removeprefix("fatal: ") for line in lines if line)
    return "; ".join(dict.fromkeys(lines))[-600:] or "it gave no reason"
