"""From a configuration to a report: data, run folder, server, samples, scores."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from enginehouse import evaluation
from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.foreign_runs import demand_trust, read_config
from enginehouse.commands.kept_variables import is_kept, with_left_out
from enginehouse.core.errors import (
    ConfigurationError,
    ModelError,
    RunLockedError,
    ServerError,
    StoreError,
    TaskError,
    TlsError,
    UnknownNameError,
    UnsupportedError,
)
from enginehouse.core.incidents import Incident
from enginehouse.deployment.asking import asking
from enginehouse.deployment.configuration import merged, parse
from enginehouse.deployment.serving import Serving
from enginehouse.engines.registry import load_engine
from enginehouse.evaluation import EvaluationSpec, Prices, TaskSpec
from enginehouse.processes.sandbox import find_sandbox
from enginehouse.processes.tree import ProcessIdentity, identify
from enginehouse.results.rescoring import Rescoring
from enginehouse.results.summary import Progress, Report
from enginehouse.runtime.context import Notify
from enginehouse.servers.records import list_servers
from enginehouse.servers.server import stop_server
from enginehouse.store.layout import Layout
from enginehouse.store.runs import Run, RunStatus, Worker, create_run, open_run
from enginehouse.tasks.base import Dataset, ProgramTask, Task
from enginehouse.tasks.registry import load_task

OnProgress = Callable[[Progress], None]
Asking = Callable[..., AbstractAsyncContextManager[Serving]]  # as `asking`
Given = TypeVar("Given", bound=EvaluationConfig)
_NEVER_BEGUN = (ConfigurationError, ModelError, UnsupportedError)  # if nothing was asked
_LASTING = (*_NEVER_BEGUN, TaskError, RunLockedError)  # the same again if the run is resumed


async def run_evaluation(
    config: EvaluationConfig,
    *,
    layout: Layout,
    notify: Notify,
    progress: OnProgress = lambda _: None,
    ask: Asking = asking,
    begun: Callable[[Run], None] = lambda _: None,
) -> Report:
    """Evaluate from the beginning, in a new run folder; `ask` opens whoever is to be asked.

    `begun` hears of the run before anybody is asked.

    The data is loaded before the folder is made, and everything else that can fail fails before a
    server is started. Raises EnginehouseError; what was asked until then stays in the run. A run
    whose configuration is wrong is removed: it could never be resumed.
    """
    config = with_absolute_paths(config)
    tasks = await asyncio.to_thread(_load_tasks, config)
    if config.engine is not None:
        engine = load_engine(config.engine)
        evaluation.check_tasks(
            _spec(config, tasks), tasks=tasks, capabilities=engine.capabilities(None)
        )
    run = create_run(
        layout,
        model=config.model or str(config.path or config.url),
        tasks=list(tasks),
        config=resolved_yaml(config),
        versions={"enginehouse": version("enginehouse"), "python": platform.python_version()},
        left_out=left_out(config),
    )
    notify(f"run: {run.info.id}")
    await asyncio.to_thread(_warn_of_scoring, tasks, notify)
    begun(run)
    try:
        return await _carry_out(run, config, tasks, layout, notify, progress, ask=ask)
    except _NEVER_BEGUN:
        if not run.journal_path.exists():  # nothing was asked, and resuming could not succeed
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


async def resume_evaluation(
    reference: str,
    *,
    layout: Layout,
    notify: Notify,
    progress: OnProgress = lambda _: None,
    retry_failed: bool = False,
    trust: bool = False,
    ask: Asking = asking,
) -> Report:
    """Ask what a run has not asked yet; a complete run asks nothing and starts no server.

    Raises UntrustedRunError for somebody else's run that would run code, unless `trust`.
    """
    run = open_run(layout, reference)
    with run.hold():
        report = evaluation.summarise(run) if run.journal_path.exists() else None
        if report and report.complete and not (retry_failed and _has_failures(report)):
            notify(f"run {run.info.id} is complete: nothing to ask")
            _note_complete(run, report)
            return report
        config = read_config(run)
        if not trust:
            demand_trust(run, config, layout=layout)
        tasks = await asyncio.to_thread(_load_tasks, config)
        notify(f"run: {run.info.id}, resumed")
        await asyncio.to_thread(_warn_of_scoring, tasks, notify)
        await _stop_abandoned(run, layout=layout, notify=notify)
        return await _carry_out(run, config, tasks, layout, notify, progress, retry_failed, ask=ask)


async def rescore_evaluation(
    reference: str,
    *,
    layout: Layout,
    notify: Notify,
    progress: OnProgress = lambda _: None,
    trust: bool = False,
) -> Rescoring:
    """Score a run's answers again, by its tasks as they are now; nothing is asked.

    Raises UntrustedRunError as `resume_evaluation` does, and what `evaluation.rescore` does.
    """
    run = open_run(layout, reference)
    with run.hold():
        config = read_config(run)
        if not trust:
            demand_trust(run, config, layout=layout)
        tasks = await asyncio.to_thread(_load_tasks, config)
        await asyncio.to_thread(_warn_of_scoring, tasks, notify)
        spec = _spec(config, tasks)
        return await evaluation.rescore(spec, tasks=tasks, run=run, progress=progress)


async def evaluate(
    model: str | None = None,
    *,
    tasks: Sequence[str],
    notify: Notify = lambda _: None,
    progress: OnProgress = lambda _: None,
    **settings: Any,
) -> Report:
    """Evaluate `model` on `tasks`: what `enginehouse eval` does.

    `settings` holds the other fields of EvaluationConfig (limit=15, url=…, server={…}). Raises
    EnginehouseError. Failed samples do not raise: a task with too many has no headline.
    """
    values = merged({}, {"model": model, "tasks": list(tasks), **settings})
    config = parse(EvaluationConfig, values, origin="evaluate()")
    layout = Layout.from_environment()
    return await run_evaluation(config, layout=layout, notify=notify, progress=progress)


def left_out(config: EvaluationConfig) -> list[str]:
    """The variables of the server's environment whose values are not written down."""
    return sorted(name for name in config.server.env_vars if not is_kept(name))


def resolved_yaml(config: EvaluationConfig) -> str:
    """The whole configuration as a file that can be run again, without what may be a secret."""
    values = config.model_dump(mode="json", exclude_none=True)
    server = values["server"]
    hidden = ["api_key"] if server.pop("api_key", None) else []
    for name in left_out(config):
        del server["env_vars"][name]
        hidden.append(f"env_vars.{name}")
    head = "# Run it again: enginehouse eval --config FILE\n"
    if hidden:
        head += f"# Left out because they may be secrets: {', '.join(hidden)}\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


async def _carry_out(
    run: Run,
    config: EvaluationConfig,
    tasks: dict[str, tuple[Task, Dataset]],
    layout: Layout,
    notify: Notify,
    progress: OnProgress,
    retry_failed: bool = False,  # noqa: FBT001, FBT002 (one caller, next to it)
    *,
    ask: Asking = asking,
) -> Report:
    with run.hold():
        try:
            run.update(
                status=RunStatus.RUNNING, finished=None, worker=_worker(identify(os.getpid()))
            )

            def note(incident: Incident) -> None:
                run.update(incidents=(*run.info.incidents, incident))

            evaluate = partial(
                evaluation.evaluate,
                _spec(config, tasks),
                tasks=tasks,
                run=run,
                progress=progress,
                retry_failed=retry_failed,
            )
            if run.journal_path.exists() and not evaluation.count_missing(
                _spec(config, tasks), tasks=tasks, run=run, retry_failed=retry_failed
            ):
                return await evaluate(sampler=None, provenance=None)
            if ask is asking:  # any other caller that opens the server has its own settings
                config = with_left_out(config, run.info.left_out)
            async with ask(
                config,
                layout=layout,
                notify=notify,
                concurrency=config.concurrency,
                on_incident=note,
            ) as ready:
                log = ready.server.log
                run.update(model=ready.provenance.model, server_log=str(log) if log else None)
                return await evaluate(sampler=ready.sampler, provenance=ready.provenance)
        except BaseException as error:
            _note_end(run, error)
            if (kept := _what_is_kept(run, error)) is not None:
                notify(kept)
            raise


def _what_is_kept(run: Run, error: BaseException) -> str | None:
    """What can be done with a run that `error` ended; None where that is nothing.

    A run is resumed with the options that it began with: what is wrong with those, with its task or
    with its model stays wrong.
    """
    begun = run.journal_path.exists()
    if isinstance(error, _LASTING):
        return f"what was asked is kept: enginehouse show {run.info.id}" if begun else None
    if isinstance(error, (ServerError, TlsError)) and not begun:
        return None  # no server was reached: another option or address may be what it needs
    return f"the run is kept; go on with: enginehouse resume {run.info.id}"


async def _stop_abandoned(run: Run, *, layout: Layout, notify: Notify) -> None:
    """See the server of this run's killed process gone, before a new one needs its memory."""
    for status in list_servers(layout):
        if status.abandoned and run.info.worker == _worker(status.record.starter):
            notify(f"stopping {status.record.name}, which the killed run left behind")
            with contextlib.suppress(UnknownNameError):  # its reaper was faster
                await stop_server(status.record.name, layout=layout)


def _worker(process: ProcessIdentity | None) -> Worker | None:
    return Worker(**msgspec.structs.asdict(process)) if process else None


def _note_end(run: Run, error: BaseException) -> None:
    if run.info.status is not RunStatus.RUNNING:
        return
    stopped = isinstance(error, asyncio.CancelledError)
    try:
        run.finish(RunStatus.INTERRUPTED if stopped else RunStatus.FAILED)
    except StoreError as second:  # a full disk must not hide the first error
        error.add_note(str(second))


def _load_tasks(config: EvaluationConfig) -> dict[str, tuple[Task, Dataset]]:
    """Tasks and data by the task's own name; blocking."""
    loaded: dict[str, tuple[Task, Dataset]] = {}
    for chosen in config.tasks:
        task = load_task(chosen.name)
        if task.info.name in loaded:
            raise ConfigurationError(
                f"the task {task.info.name} is named twice", fix="name each task once"
            )
        loaded[task.info.name] = (task, task.load(data=chosen.data, seed=config.seed))
    return loaded


def _warn_of_scoring(tasks: dict[str, tuple[Task, Dataset]], notify: Notify) -> None:
    """Say once what scoring by other people's code could do on a machine without a sandbox."""
    programs = [task.foreign_code for task, _ in tasks.values() if isinstance(task, ProgramTask)]
    confined = [program for program in programs if program is not None and not program.trusted]
    sandbox = find_sandbox()
    if confined and sandbox.problem:
        notify(
            f"note: {', '.join(dict.fromkeys(p.name for p in confined))} is not our own code, and "
            f"there is no sandbox for it ({sandbox.problem}): an answer that takes it over could "
            "read, delete or send what you can. It sees no environment variables, and its time "
            f"and memory are limited. To confine it: {sandbox.fix}"
        )


def _spec(config: EvaluationConfig, tasks: dict[str, tuple[Task, Dataset]]) -> EvaluationSpec:
    return EvaluationSpec(
        tasks=tuple(
            TaskSpec(
                name=name,
                limit=chosen.limit or config.limit,
                samples=chosen.samples,
                max_tokens=chosen.max_tokens,
            )
            for name, chosen in zip(tasks, config.tasks, strict=True)
        ),
        samples=config.samples,
        seed=config.seed,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=config.max_tokens,
        system=config.system,
        max_failed=config.max_failed,
        concurrency=config.concurrency,
        tool_steps=config.tool_steps,
        prices=_prices(config),
    )


def _prices(config: EvaluationConfig) -> Prices | None:
    if config.price_input is None or config.price_output is None:
        return None
    return Prices(input=config.price_input, output=config.price_output)


def with_absolute_paths(config: Given) -> Given:
    """So that the resolved file means the same from any folder."""

    def absolute(path: str | None) -> str | None:
        return str(Path(path).absolute()) if path is not None and Path(path).exists() else path

    tasks = tuple(
        task.model_copy(update={"name": absolute(task.name), "data": absolute(task.data)})
        for task in config.tasks
    )
    changes = {
        "tasks": tasks,
        # at an address it is a name, whatever is called so here
        "model": config.model if config.url else absolute(config.model),
        "path": config.path and config.path.absolute(),
        "adapter": config.adapter and config.adapter.absolute(),
        "python": config.python and config.python.absolute(),
    }
    return config.model_copy(update=changes)


def _note_complete(run: Run, report: Report) -> None:
    """Write what a process that was killed after the last sample could not write any more."""
    if run.info.status is not RunStatus.COMPLETE or not run.report_path.exists():
        run.write_report(msgspec.json.format(msgspec.json.encode(report)))
        run.finish(RunStatus.COMPLETE)


def _has_failures(report: Report) -> bool:
    return any(task.outcomes.get("failed", 0) for task in report.tasks)
