"""The NeMo Evaluator launcher's notebook API: only the import line changes.

`python -m enginehouse.facades.nemo` takes the launcher's command line. docs/coming-from.md lists
the differences and the reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from omegaconf import DictConfig, OmegaConf

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import JobState
from enginehouse.jobs.composition import load_launch, resolve_launch
from enginehouse.jobs.launch_file import check_launch, with_tasks
from enginehouse.jobs.records import JobRecord, JobRecords
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

__all__ = [
    "RunConfig",
    "get_status",
    "get_tasks_list",
    "kill_job_or_invocation",
    "resume_eval",
    "run_eval",
]

Result = TypeVar("Result")

_STATES = {
    JobState.PENDING: "pending",
    JobState.RUNNING: "running",
    JobState.COMPLETE: "success",
    JobState.FAILED: "failed",
    JobState.INTERRUPTED: "failed",
    JobState.CANCELLED: "killed",
    JobState.UNKNOWN: "unknown",
}


class RunConfig(DictConfig):
    """A launch configuration that may still be changed, as the launcher's."""

    @classmethod
    def from_hydra(
        cls,
        config: str | None = None,
        hydra_overrides: Sequence[str] | None = None,
        dict_overrides: Mapping[str, Any] | None = None,
        *,
        config_dir: str | None = None,
        config_name: str | None = None,
    ) -> Self:
        """Compose a file, or without one the packaged groups (local, no deployment).

        `config` is a path; `config_name` is the name of a file in `config_dir` (by default the
        current folder) without .yaml. `dict_overrides` are merged last. Raises ConfigurationError.
        """
        path: Path | None = None
        if config is not None:
            path = Path(config).expanduser()
        elif config_name is not None:
            name = config_name.removesuffix(".yaml")
            path = Path(config_dir or ".").expanduser() / f"{name}.yaml"
        loaded = load_launch(path, overrides=list(hydra_overrides or ()))
        OmegaConf.set_struct(loaded, value=False)
        return cls(OmegaConf.merge(loaded, dict(dict_overrides or {})))


def run_eval(
    cfg: DictConfig,
    dry_run: bool = False,  # noqa: FBT001, FBT002 - the launcher's signature
    tasks: Sequence[str] | None = None,
) -> str | None:
    """Launch a configuration; returns the job's id when it is submitted.

    With `dry_run`, print what `enginehouse launch run --dry-run` prints, and return None. Raises
    EnginehouseError.
    """
    from enginehouse.jobs.launch import launch
    from enginehouse.jobs.launch_report import dry_run_lines, launch_lines
    from enginehouse.jobs.plan import plan_launch

    composition = resolve_launch(cfg, path=Path("the configuration"))
    plan = plan_launch(check_launch(with_tasks(composition, tasks or ())))
    context = Context(notify=print)
    if dry_run:
        from enginehouse.jobs.dry_run import dry_run as shown

        for line in dry_run_lines(shown(plan, context)):
            context.notify(line)
        return None
    for line in launch_lines(plan):
        context.notify(line)
    return _awaited(launch(plan, context)).id


def get_status(job_ids: Sequence[str]) -> list[dict[str, Any]]:
    """The states of jobs, one dictionary each: `invocation`, `job_id`, `status`, `data`.

    Beginnings of ids are accepted, and so is the `.0` that the launcher adds for a task. A job
    that is not known has the status `not_found`.
    """
    from enginehouse.jobs.launch import refresh

    layout = Layout.from_environment()
    known: dict[str, JobRecord] = {}
    for job_id in job_ids:
        try:
            known[job_id] = JobRecords(layout).find(_job_of(job_id))
        except JobError as error:
            if error.kind != "unknown":
                raise
    refreshed = _awaited(refresh(list(known.values()), Context(layout=layout, notify=print)))
    records = dict(zip(known, refreshed, strict=True))
    return [_status(job_id, records.get(job_id)) for job_id in job_ids]


def resume_eval(invocation_id: str) -> str:
    """Submit a job again that has ended; it continues where it was. Returns its id."""
    from enginehouse.jobs.launch import resume

    layout = Layout.from_environment()
    record = JobRecords(layout).find(_job_of(invocation_id))
    return _awaited(resume(record, Context(layout=layout, notify=print))).id


def kill_job_or_invocation(id: str) -> list[dict[str, Any]]:  # noqa: A002 - the launcher's name
    """End a job; returns its state when nothing of it is left. Idempotent."""
    from enginehouse.jobs.launch import kill

    layout = Layout.from_environment()
    record = JobRecords(layout).find(_job_of(id))
    ended = _awaited(kill(record, Context(layout=layout, notify=print)))
    return [_status(id, ended)]


def get_tasks_list() -> list[list[Any]]:
    """The tasks that run here, by each of their names; not the thousands of lm-eval's own names.

    Each has the launcher's seven columns: name, endpoint type, harness, container (none), arch
    (any), description, and type.
    """
    from enginehouse.jobs.task_names import foreign_spellings, native_spellings, resolve_task
    from enginehouse.tasks.registry import TASKS, load_task

    rows = []
    for name in TASKS.names():
        info = load_task(name).info
        for spelling in (f"enginehouse.{name}", *native_spellings(name)):
            harness, _, task = spelling.rpartition(".")
            rows.append([task, "chat", harness, "", "", info.description, "benchmark"])
    for name in foreign_spellings():
        found = resolve_task(name, base=Path())
        rows.append([name, "chat", found.harness or "", "", "", found.meaning, "benchmark"])
    return rows


def _job_of(reference: str) -> str:
    """A job's id, of the launcher's `ID` or `ID.INDEX`."""
    return reference.partition(".")[0]


def _status(reference: str, record: JobRecord | None) -> dict[str, Any]:
    if record is None:
        return {
            "invocation": _job_of(reference),
            "job_id": None,
            "status": "not_found",
            "data": {},
        }
    return {
        "invocation": record.id,
        "job_id": record.id,
        "status": _STATES[record.status.state],
        "progress": "unknown",
        "data": {
            "output_dir": str(record.job.folder),
            "executor": record.executor,
            "model": record.model,
            "tasks": list(record.tasks),
            "reason": record.status.reason,
            "diagnosis": record.diagnosis,
            **(dict(record.handle.reference) if record.handle is not None else {}),
        },
    }


def _awaited(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, also where an event loop runs already, as in a notebook."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
