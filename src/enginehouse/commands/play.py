"""From an experiment's configuration to its report: run folder, deployments, matches."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import yaml

from enginehouse.arena.experiment import matches_left, play_experiment
from enginehouse.arena.human import Human
from enginehouse.arena.summary import summarise_experiment
from enginehouse.commands.experiment_configuration import ExperimentConfig, ProviderConfig
from enginehouse.commands.experiment_models import ask_plan, open_models
from enginehouse.commands.experiment_plan import ExperimentPlan, plan_experiment
from enginehouse.commands.foreign_runs import read_experiment, require_trust
from enginehouse.commands.kept_variables import is_kept, with_left_out
from enginehouse.commands.play_reports import write_replay_pages
from enginehouse.commands.run_sessions import stop_abandoned_servers, working_on
from enginehouse.core.incidents import Incident
from enginehouse.report.experiment_csv import experiment_csv
from enginehouse.results.experiment import ExperimentReport
from enginehouse.results.experiment_progress import ExperimentProgress
from enginehouse.runtime.context import Context
from enginehouse.store.files import require_folder, write_whole
from enginehouse.store.runs import Run, create_run, open_run

OnProgress = Callable[[ExperimentProgress], None]


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A run and what is played in it."""

    run: Run
    config: ExperimentConfig
    plan: ExperimentPlan


async def run_experiment(
    config: ExperimentConfig,
    context: Context,
    *,
    origin: str,
    human: Human | None = None,
    progress: OnProgress = lambda _: None,
) -> ExperimentReport:
    """Play an experiment in a new run, on deployments that are opened for it.

    `origin` names the configuration in errors. Raises ConfigurationError before anything is started
    or asked, and what `open_models` and `play_experiment` do; what was played until then is
    kept. A match that fails alone does not raise.
    """
    if config.cassette is not None:
        recording = _recording(config.cassette, context)
        config = config.model_copy(update={"cassette": str(recording.folder)})
    config = _with_absolute_paths(config)
    plan = plan_experiment(config, origin=origin)
    if config.output_dir is not None:
        require_folder(config.output_dir)
    for name, provider in plan.providers.items():
        ask_plan(provider, name=name)
    run = create_run(
        context.layout,
        model=", ".join(plan.providers) or "no model",
        tasks=[plan.spec.game],
        config=_resolved_yaml(config),
        versions={"enginehouse": version("enginehouse"), "python": platform.python_version()},
        left_out=_left_out(config),
        kind="experiment",
        title=plan.spec.name,
    )
    context.notify(f"run: {run.info.id}")
    planned = _Planned(run=run, config=config, plan=plan)
    return await _play(planned, context, human=human, progress=progress)


async def resume_experiment(
    reference: str,
    context: Context,
    *,
    human: Human | None = None,
    progress: OnProgress = lambda _: None,
    retry_failed: bool = False,
    trust: bool = False,
) -> ExperimentReport:
    """Play what an experiment lacks; a complete one asks nothing and starts no server.

    Calls that a match made before it was interrupted are not made again. Raises UntrustedRunError
    for another user's run that would run code, unless `trust`.
    """
    run = open_run(context.layout, reference)
    run.require_kind("experiment", instead="resume")
    with run.hold():
        config = read_experiment(run)
        if not trust:
            require_trust(run, config, layout=context.layout)
        plan = plan_experiment(config, origin=str(run.config_path))
        if config.output_dir is not None:
            require_folder(config.output_dir)
        context.notify(f"run: {run.info.id}, resumed")
        await stop_abandoned_servers(run, context)
        return await _play(
            _Planned(run=run, config=config, plan=plan),
            context,
            human=human,
            progress=progress,
            retry_failed=retry_failed,
        )


async def _play(
    planned: _Planned,
    context: Context,
    *,
    human: Human | None,
    progress: OnProgress,
    retry_failed: bool = False,
) -> ExperimentReport:
    run, config, plan = planned.run, planned.config, planned.plan
    cassette = config.cassette and _recording(config.cassette, context).journal_path
    with working_on(run, context):
        # a new run has no journal until somebody answers
        left = not run.journal_path.exists() or matches_left(
            plan.spec, game=plan.game, run=run, retry_failed=retry_failed
        )
        if not left:
            context.notify(f"run {run.info.id} is complete: nothing to play")
        providers: Mapping[str, ProviderConfig] = {}
        if left and not config.offline:
            providers = _with_variables(plan.providers, run.info.left_out)
        async with open_models(providers, context, concurrency=config.concurrency) as opened:

            def note(incident: Incident) -> None:
                run.update(incidents=(*run.info.incidents, incident))

            with ExitStack() as stack:
                for deployment in opened.deployments:
                    stack.enter_context(deployment.incidents.subscribe(note))
                logs = [deployment.server.log for deployment in opened.deployments]
                run.update(server_log=next((str(log) for log in logs if log), None))
                await play_experiment(
                    plan.spec,
                    game=plan.game,
                    models=opened.models,
                    run=run,
                    human=human,
                    cassette=cassette or None,
                    progress=progress,
                    retry_failed=retry_failed,
                )
        report = await asyncio.to_thread(summarise_experiment, run)
        run.write_report(_as_json(report))
    if (output_dir := config.output_dir) is not None:
        folder = output_dir / run.info.id
        await asyncio.to_thread(_copy_results, run, report, folder)
        context.notify(f"results: {folder}")
    return report


def _recording(reference: str, context: Context) -> Run:
    """The run whose calls answer. Raises RunNotFoundError; ConfigurationError for an evaluation."""
    run = open_run(context.layout, reference)
    run.require_kind("experiment", instead="show")
    return run


def _copy_results(run: Run, report: ExperimentReport, folder: Path) -> None:
    """Write what people look at into a folder of their own. Raises StoreError. Blocking."""
    write_whole(folder / "report.json", _as_json(report))
    write_whole(folder / "figures.csv", experiment_csv(report).encode())
    write_replay_pages(run, report, folder / "replay.html")


def _as_json(report: ExperimentReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report))


def _with_variables(
    providers: Mapping[str, ProviderConfig], names: Sequence[str]
) -> dict[str, ProviderConfig]:
    """The providers with the variables that were left out of the run's file."""
    if not names:
        return dict(providers)
    return {
        name: provider.model_copy(update={"server": with_left_out(provider.server, names)})
        for name, provider in providers.items()
    }


def _with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """So that the stored file means the same from any folder."""

    def change(provider: ProviderConfig) -> ProviderConfig:
        values: dict[str, Any] = {}
        for name in ("adapter", "path", "python"):
            if (path := getattr(provider, name)) is not None:
                values[name] = path.expanduser().absolute()
        # the name that a running server lists is left alone
        if (provider.serve or config.serve) and provider.model and Path(provider.model).exists():
            values["model"] = str(Path(provider.model).absolute())
        return provider.model_copy(update=values)

    config = config.with_providers(change)
    if config.output_dir is None:
        return config
    output_dir = config.output_dir.expanduser().absolute()
    return config.model_copy(update={"output_dir": output_dir})


def _resolved_yaml(config: ExperimentConfig) -> str:
    """The configuration as a file that can be played again, without what may be a secret."""
    hidden: set[str] = set()

    def change(provider: ProviderConfig) -> ProviderConfig:
        server = provider.server
        if provider.api_key is not None or server.api_key is not None:
            hidden.add("api_key")
        kept = {n: v for n, v in server.env_vars.items() if is_kept(n)}
        hidden.update(f"env_vars.{name}" for name in server.env_vars.keys() - kept.keys())
        values: dict[str, Any] = {"api_key": None}
        if server.api_key is not None or server.env_vars:
            values["server"] = server.model_copy(update={"api_key": None, "env_vars": kept})
        return provider.model_copy(update=values)

    # what was not given is left out: a team's provider would otherwise override the default one
    values = config.with_providers(change).model_dump(
        mode="json", exclude_unset=True, exclude_none=True
    )
    values["game"] = dict(config.game)
    head = "# Play it again: enginehouse play FILE\n"
    if hidden:
        head += f"# Omitted because they may be secrets: {', '.join(sorted(hidden))}\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _left_out(config: ExperimentConfig) -> list[str]:
    names = {name for provider in config.providers for name in provider.server.env_vars}
    return sorted(name for name in names if not is_kept(name))
