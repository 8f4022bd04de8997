"""A model and its adapters, evaluated on the same items by one server, and compared in pairs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import OnProgress, begin_run, evaluate_on
from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.preparation import with_adapters
from enginehouse.evaluation.compare import compare_runs
from enginehouse.results.comparison import Comparison
from enginehouse.results.summary import Report
from enginehouse.runtime.context import Context
from enginehouse.store.runs import open_run


class Together(msgspec.Struct, frozen=True, kw_only=True):
    """A report for each, in the given order, and a comparison of each with the baseline.

    The baseline is the bare model if there is one, else the first.
    """

    reports: tuple[Report, ...]
    comparisons: tuple[Comparison, ...]


async def run_together(
    configs: Sequence[EvaluationConfig],
    context: Context,
    *,
    progress: OnProgress = lambda _: None,
) -> Together:
    """Evaluate one after the other on one server; each is a run of its own, which can be resumed.

    Raises ConfigurationError unless they differ in nothing but the adapter, and what
    `run_evaluation` does.
    """
    _require_one_model(configs)
    adapters = [config.plan.adapter for config in configs]
    folders = [folder for folder in adapters if folder is not None]
    plan = await asyncio.to_thread(with_adapters, _bare(configs[0].plan), folders)
    reports = []
    concurrency = configs[0].settings.most_in_flight
    async with open_deployment(plan, context, concurrency=concurrency) as deployment:
        for config in configs:
            run = await begin_run(config, context)
            async with deployment.target(config.plan.adapter) as target:
                reports.append(await evaluate_on(target, run, context, progress=progress))
    baseline = adapters.index(None) if None in adapters else 0
    runs = [open_run(context.layout, report.run) for report in reports]
    comparisons = tuple(
        compare_runs(runs[baseline], run) for at, run in enumerate(runs) if at != baseline
    )
    return Together(reports=tuple(reports), comparisons=comparisons)


def _require_one_model(configs: Sequence[EvaluationConfig]) -> None:
    plans = [config.plan for config in configs]
    if any(plan.runs_already for plan in plans):
        raise ConfigurationError(
            "a running server is evaluated with one model at a time",
            fix="name one of its models with --model, or remove --url and --addresses",
        )
    asked = [(_bare(config.plan), config.settings) for config in configs]
    if any(other != asked[0] for other in asked):
        raise ConfigurationError(
            "on one server, a model and adapters of it can be evaluated together",
            why=f"these are {', '.join(sorted({str(plan.model) for plan in plans}))}",
            fix="evaluate them one by one, and compare the runs: enginehouse compare",
        )
    if len({plan.adapter for plan in plans}) < len(plans):
        raise ConfigurationError("a model is named twice", fix="name each once")


def _bare(plan: AskConfig) -> AskConfig:
    return plan.model_copy(update={"adapter": None})
