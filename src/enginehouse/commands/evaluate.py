"""From a configuration to a report: data, run folder, server, samples, scores."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import yaml

from enginehouse import evaluation
from enginehouse.commands.configuration import (
    EvaluationConfig,
    EvaluationSettings,
    JudgeConfig,
    TaskConfig,
)
from enginehouse.commands.foreign_runs import read_config, require_trust
from enginehouse.commands.kept_variables import is_kept, with_left_out
from enginehouse.commands.run_sessions import stop_abandoned_servers, working_on
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.incidents import Incident
from enginehouse.core.sampler import Capability, Delivery
from enginehouse.deployment.base import Target
from enginehouse.deployment.configuration import AskConfig, merged, parse
from enginehouse.deployment.opening import open_deployment
from enginehouse.dialects.base import require
from enginehouse.engines.registry import load_engine
from enginehouse.evaluation import (
    EvaluationSpec,
    Judge,
    JudgeSpec,
    Prices,
    TaskPlans,
    TaskSpec,
)
from enginehouse.harnesses.contents import Contents
from enginehouse.harnesses.names import harness_task_name
from enginehouse.processes.sandbox import find_sandbox
from enginehouse.results.rescoring import Rescoring
from enginehouse.results.summary import Progress, Report
from enginehouse.runtime.context import Context, Notify
from enginehouse.store.runs import Run, RunStatus, create_run, open_run
from enginehouse.tasks.base import Dataset, ProgramTask, Task, is_judged
from enginehouse.tasks.registry import load_task

_OF_JUDGE = "judge."

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run, the configuration that it was begun with, and what it asks.

    `contents` is what its harness tasks consist of; None if the run is resumed.
    """

    run: Run
    config: EvaluationConfig
    spec: EvaluationSpec
    tasks: TaskPlans
    contents: Mapping[str, Contents] | None = None


async def run_evaluation(
    config: EvaluationConfig,
    context: Context,
    *,
    progress: OnProgress = lambda _: None,
    folder: Path | None = None,
) -> Report:
    """Evaluate in a new run, on a deployment that is opened for it.

    `folder` becomes the run's folder; a run that is there already, of the same configuration, is
    resumed. Raises what `begin_run` and `evaluate_on` do, and ConfigurationError for a run of
    another configuration.
    """
    if folder is not None and (folder / "run.json").exists():
        run = open_run(context.layout, str(folder))
        run.require_kind("evaluation", instead="resume")
        await asyncio.to_thread(_require_same, run, config)
        return await _resume(run, config, context, progress=progress)
    planned = await begin_run(config, context, folder=folder)
    return await _evaluate(planned, context, progress=progress)


async def resume_evaluation(
    reference: str,
    context: Context,
    *,
    progress: OnProgress = lambda _: None,
    retry_failed: bool = False,
    trust: bool = False,
    target: Target | None = None,
) -> Report:
    """Ask what a run has not asked yet; a complete run asks nothing and starts no server.

    It is asked of `target`, or of a deployment that is opened for it. Raises UntrustedRunError for
    another user's run that would run code, unless `trust`.
    """
    run = open_run(context.layout, reference)
    run.require_kind("evaluation", instead="resume")
    return await _resume(
        run,
        None,
        context,
        progress=progress,
        retry_failed=retry_failed,
        trust=trust,
        target=target,
    )


async def _resume(
    run: Run,
    config: EvaluationConfig | None,
    context: Context,
    *,
    progress: OnProgress,
    retry_failed: bool = False,
    trust: bool = False,
    target: Target | None = None,
) -> Report:
    """As `resume_evaluation`; `config` is what its user gave now, in place of the run's own."""
    with run.hold():
        report = evaluation.summarise(run) if run.journal_path.exists() else None
        if report and report.complete and not (retry_failed and _has_failures(report)):
            context.notify(f"run {run.info.id} is complete: nothing to ask")
            _note_complete(run, report)
            return report
        if config is None:
            config = read_config(run)
            if not trust:
                require_trust(run, config, layout=context.layout)
        config = config.with_absolute_paths()
        spec, tasks = await asyncio.to_thread(_plan, config.settings)
        planned = PlannedRun(run=run, config=config, spec=spec, tasks=tasks)
        context.notify(f"run: {run.info.id}, resumed")
        await asyncio.to_thread(_warn_of_scoring, tasks, context.notify)
        await stop_abandoned_servers(run, context)
        if target is None:
            return await _evaluate(planned, context, progress=progress, retry_failed=retry_failed)
        return await evaluate_on(
            target, planned, context, progress=progress, retry_failed=retry_failed
        )


async def begin_run(
    config: EvaluationConfig, context: Context, *, folder: Path | None = None
) -> PlannedRun:
    """Load the data, check that the engine can answer, and make a folder for the run: `folder`.

    Raises TaskError, DataError, UnsupportedError and StoreError, for tasks of harnesses what
    `harness_tasks.require_tasks` does; then there is no folder.
    """
    config = config.with_absolute_paths()
    plan = config.plan
    spec, tasks = await asyncio.to_thread(_plan, config.settings)
    if plan.engine is not None:
        engine = load_engine(plan.engine)
        evaluation.require_supported(spec, tasks=tasks, capabilities=engine.capabilities(None))
    contents = None
    if spec.foreign:
        from enginehouse.commands.harness_tasks import require_tasks  # imports the gateway

        contents = await require_tasks(config, spec, context)
    run = create_run(
        folder or context.layout,
        model=plan.model or str(plan.path or plan.url or plan.addresses),
        tasks=[task.name for task in spec.tasks],
        config=resolved_yaml(config),
        versions={"enginehouse": version("enginehouse"), "python": platform.python_version()},
        left_out=left_out(config),
    )
    context.notify(f"run: {run.info.id}")
    await asyncio.to_thread(_warn_of_scoring, tasks, context.notify)
    return PlannedRun(run=run, config=config, spec=spec, tasks=tasks, contents=contents)


async def evaluate_on(
    target: Target,
    planned: PlannedRun,
    context: Context,
    *,
    progress: OnProgress = lambda _: None,
    retry_failed: bool = False,
) -> Report:
    """Ask `target` what the run lacks. Raises EnginehouseError; what was asked until then is kept.

    A run of which nothing was asked is removed if its configuration is wrong: it could never be
    resumed.
    """
    with working_on(planned.run, context):
        async with open_judge(planned.config, planned.tasks, context, run=planned.run) as judge:
            return await _ask(
                planned,
                target,
                context,
                judge=judge,
                progress=progress,
                retry_failed=retry_failed,
            )


async def _evaluate(
    planned: PlannedRun, context: Context, *, progress: OnProgress, retry_failed: bool = False
) -> Report:
    """As `evaluate_on`, on a deployment of its own; none is opened if nothing is left to ask."""
    run = planned.run
    with working_on(run, context):
        missing = None
        if run.journal_path.exists():
            missing = evaluation.count_missing(
                planned.spec, tasks=planned.tasks, run=run, retry_failed=retry_failed
            )
        async with AsyncExitStack() as stack:
            judge = None
            if missing is None or missing.asks_model or missing.judgements:
                judge = await stack.enter_async_context(
                    open_judge(planned.config, planned.tasks, context, run=run)
                )
            if missing is not None and not missing.asks_model:
                return await evaluation.evaluate(
                    planned.spec,
                    tasks=planned.tasks,
                    sampler=None,
                    provenance=None,
                    run=run,
                    judge=judge,
                    progress=progress,
                    retry_failed=retry_failed,
                )
            server = with_left_out(planned.config.plan.server, _names_of(run, judge=False))
            plan = planned.config.plan.model_copy(update={"server": server})
            deployment = await stack.enter_async_context(
                open_deployment(plan, context, concurrency=planned.spec.most_in_flight)
            )
            return await _ask(
                planned,
                deployment.default,
                context,
                judge=judge,
                progress=progress,
                retry_failed=retry_failed,
            )


@asynccontextmanager
async def open_judge(
    config: EvaluationConfig, tasks: TaskPlans, context: Context, *, run: Run
) -> AsyncIterator[Judge | None]:
    """The judge of the configuration, for the length of the block; None if no task needs one."""
    settings = config.settings.judge
    if settings is None or not any(is_judged(plan.task) for plan in tasks):
        yield None
        return
    server = with_left_out(settings.server, _names_of(run, judge=True))
    plan = settings.model_copy(update={"server": server})
    context.notify(f"judge: {settings.name}")
    async with open_deployment(plan, context, concurrency=settings.concurrency) as deployment:
        require(deployment.sampler.capabilities, Capability.CHAT, "a judge")
        yield Judge(
            deployment.sampler,
            provenance=deployment.provenance,
            delivery=Delivery(timeout=settings.request_timeout, max_retries=settings.max_retries),
        )


def _names_of(run: Run, *, judge: bool) -> list[str]:
    """The variables that were left out of the run's file, of the judge's server or of the other."""
    if judge:
        return [n.removeprefix(_OF_JUDGE) for n in run.info.left_out if n.startswith(_OF_JUDGE)]
    return [name for name in run.info.left_out if not name.startswith(_OF_JUDGE)]


async def _ask(
    planned: PlannedRun,
    target: Target,
    context: Context,
    *,
    judge: Judge | None,
    progress: OnProgress,
    retry_failed: bool,
) -> Report:
    run, deployment = planned.run, target.deployment
    log = deployment.server.log
    run.update(model=target.provenance.model, server_log=str(log) if log else None)

    def note(incident: Incident) -> None:
        run.update(incidents=(*run.info.incidents, incident))

    foreign = None
    if planned.spec.foreign:
        from enginehouse.commands.harness_tasks import HarnessTasks

        foreign = HarnessTasks(
            planned.config,
            planned.spec,
            run=run,
            target=target,
            context=context,
            contents=planned.contents,
        )
    with deployment.incidents.subscribe(note):
        return await evaluation.evaluate(
            planned.spec,
            tasks=planned.tasks,
            sampler=target.sampler,
            provenance=target.provenance,
            run=run,
            judge=judge,
            foreign=foreign,
            progress=progress,
            retry_failed=retry_failed,
        )


async def rescore_evaluation(
    reference: str,
    context: Context,
    *,
    progress: OnProgress = lambda _: None,
    trust: bool = False,
) -> Rescoring:
    """Score a run's answers again, by its tasks as they are now; only a judge is asked.

    Raises UntrustedRunError as `resume_evaluation` does, and what `evaluation.rescore` does.
    """
    run = open_run(context.layout, reference)
    run.require_kind("evaluation", instead="play analyze")
    with run.hold():
        config = read_config(run)
        if not trust:
            require_trust(run, config, layout=context.layout)
        spec, tasks = await asyncio.to_thread(_plan, config.settings)
        await asyncio.to_thread(_warn_of_scoring, tasks, context.notify)
        async with open_judge(config, tasks, context, run=run) as judge:
            return await evaluation.rescore(
                spec, tasks=tasks, run=run, judge=judge, progress=progress
            )


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
    return await run_evaluation(config, Context(notify=notify), progress=progress)


def left_out(config: EvaluationConfig) -> list[str]:
    """The variables of the servers' environments whose values are not stored.

    Those of the judge's server begin with "judge.".
    """
    judge = config.settings.judge
    names = _left_out_of(config.plan)
    return names + [_OF_JUDGE + name for name in (_left_out_of(judge) if judge else ())]


def _left_out_of(plan: AskConfig) -> list[str]:
    return sorted(name for name in plan.server.env_vars if not is_kept(name))


def resolved_yaml(config: EvaluationConfig) -> str:
    """The whole configuration as a file that can be run again, without what may be a secret."""
    values = config.model_dump(mode="json", exclude_none=True)
    hidden = []
    plans: list[tuple[AskConfig, Any, str]] = [(config.plan, values, "")]
    if (judge := config.settings.judge) is not None:
        plans.append((judge, values["judge"], _OF_JUDGE))
    for plan, holder, of in plans:
        server = holder["server"]
        hidden += [f"{of}api_key"] if server.pop("api_key", None) else []
        for name in _left_out_of(plan):
            del server["env_vars"][name]
            hidden.append(f"{of}env_vars.{name}")
    head = "# Run it again: enginehouse eval --config FILE\n"
    if hidden:
        head += f"# Left out because they may be secrets: {', '.join(hidden)}\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _require_same(run: Run, config: EvaluationConfig) -> None:
    """Raise ConfigurationError unless the run was begun with `config`. Blocking."""
    begun = read_config(run)
    given = parse(
        EvaluationConfig,
        yaml.safe_load(resolved_yaml(config.with_absolute_paths())),
        origin="the given configuration",
    )
    before, now = begun.model_dump(), given.model_dump()
    different = [name for name in before if before[name] != now[name]]
    if different:
        raise ConfigurationError(
            f"the run in {run.folder} was begun with another configuration",
            why=f"different: {', '.join(different)}",
            fix=f"give another --folder, or continue it as it is: enginehouse resume {run.folder}",
        )


def _plan(settings: EvaluationSettings) -> tuple[EvaluationSpec, TaskPlans]:
    """Load the native tasks and their data, and choose what is asked. Blocking."""
    loaded: dict[str, tuple[Task, Dataset]] = {}
    names: list[str] = []
    for chosen in settings.tasks:
        name = chosen.name
        if harness_task_name(name) is None:
            task = load_task(name)
            name = task.info.name
            if name not in names:
                _require_judge(task, settings)
                loaded[name] = (task, task.load(data=chosen.data, seed=settings.seed))
        if name in names:
            raise ConfigurationError(f"the task {name} is named twice", fix="name each task once")
        names.append(name)
    spec = _spec(settings, names)
    return spec, evaluation.plan_tasks(spec, loaded)


def _require_judge(task: Task, settings: EvaluationSettings) -> None:
    if is_judged(task) and settings.judge is None:
        raise ConfigurationError(
            f"the answers of task {task.info.name} are scored by a judge, and none is named",
            fix="name a model, or the url of a server, below `judge` in a --config file",
        )


def _warn_of_scoring(tasks: TaskPlans, notify: Notify) -> None:
    """Warn of scoring by third-party code on a machine without a sandbox."""
    programs = [plan.task.foreign_code for plan in tasks if isinstance(plan.task, ProgramTask)]
    confined = [program for program in programs if program is not None and not program.trusted]
    sandbox = find_sandbox()
    if confined and sandbox.problem:
        notify(
            f"note: {', '.join(dict.fromkeys(p.name for p in confined))} is not our own code, and "
            f"there is no sandbox for it ({sandbox.problem}): an answer that takes it over could "
            "read, delete or send what you can. It sees no environment variables, and its time "
            f"and memory are limited. To confine it: {sandbox.fix}"
        )


def _spec(settings: EvaluationSettings, names: Sequence[str]) -> EvaluationSpec:
    return EvaluationSpec(
        tasks=tuple(
            TaskSpec(
                name=name,
                harness=_harness_of(name),
                limit=chosen.limit or settings.limit,
                **{option: getattr(chosen, option) for option in _TASK_OPTIONS},
            )
            for name, chosen in zip(names, settings.tasks, strict=True)
        ),
        samples=settings.samples,
        seed=settings.seed,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        system=settings.system,
        max_failed=settings.max_failed,
        concurrency=settings.concurrency,
        request_timeout=settings.request_timeout,
        max_retries=settings.max_retries,
        reasoning=settings.reasoning,
        reasoning_end=settings.reasoning_end,
        tool_steps=settings.tool_steps,
        prices=_prices(settings),
        judge=_judge_spec(settings.judge) if settings.judge else None,
    )


def _harness_of(task: str) -> str | None:
    name = harness_task_name(task)
    return name.harness if name is not None else None


def _judge_spec(judge: JudgeConfig) -> JudgeSpec:
    return JudgeSpec(
        model=judge.name,
        temperature=judge.temperature,
        top_p=judge.top_p,
        max_tokens=judge.max_tokens,
    )


_TASK_OPTIONS = tuple(TaskConfig.model_fields.keys() - {"name", "data", "limit"})


def _prices(settings: EvaluationSettings) -> Prices | None:
    if settings.price_input is None or settings.price_output is None:
        return None
    return Prices(input=settings.price_input, output=settings.price_output)


def _note_complete(run: Run, report: Report) -> None:
    """Write what a process that was killed after the last sample did not get to write."""
    if run.info.status is not RunStatus.COMPLETE or not run.report_path.exists():
        run.write_report(msgspec.json.format(msgspec.json.encode(report)))
        run.finish(RunStatus.COMPLETE)


def _has_failures(report: Report) -> bool:
    return any(
        task.outcomes.get("failed", 0)
        or (task.judge is not msgspec.UNSET and task.outcomes.get("unscored", 0))
        for task in report.tasks
    )
