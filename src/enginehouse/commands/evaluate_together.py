"""A model and adapters of it, evaluated on the same items by one server, and compared in pairs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import OnProgress, run_evaluation
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.incidents import Incident
from enginehouse.deployment.resident import Resident, resident, with_adapters
from enginehouse.deployment.serving import OnIncident, Serving
from enginehouse.evaluation.compare import compare_runs
from enginehouse.results.comparison import Comparison
from enginehouse.results.summary import Report
from enginehouse.runtime.context import Notify
from enginehouse.store.layout import Layout
from enginehouse.store.runs import open_run


class Together(msgspec.Struct, frozen=True, kw_only=True):
    """A report for each, in the order given, and each of the others compared with the baseline.

    The baseline is the bare model if it is among them, else the first.
    """

    reports: tuple[Report, ...]
    comparisons: tuple[Comparison, ...]


async def run_together(
    configs: Sequence[EvaluationConfig],
    *,
    layout: Layout,
    notify: Notify,
    progress: OnProgress = lambda _: None,
) -> Together:
    """Evaluate one after the other on one server; each is a run of its own, which can be resumed.

    Raises ConfigurationError unless they differ in nothing but the adapter, and what
    `run_evaluation` does.
    """
    _demand_one_model(configs)
    folders = [config.adapter for config in configs if config.adapter is not None]
    prepared = await asyncio.to_thread(with_adapters, configs[0], folders)
    incidents: list[OnIncident] = []

    def on_incident(incident: Incident) -> None:
        for told in incidents:
            told(incident)

    async with resident(
        prepared,
        layout=layout,
        notify=notify,
        concurrency=configs[0].concurrency,
        on_incident=on_incident,
    ) as lodger:
        ask = partial(_asking, lodger=lodger, incidents=incidents)
        evaluate = partial(run_evaluation, layout=layout, notify=notify, progress=progress, ask=ask)
        reports = [await evaluate(config) for config in configs]
    baseline = next((at for at, config in enumerate(configs) if config.adapter is None), 0)
    runs = [open_run(layout, report.run) for report in reports]
    comparisons = tuple(
        compare_runs(runs[baseline], run) for at, run in enumerate(runs) if at != baseline
    )
    return Together(reports=tuple(reports), comparisons=comparisons)


@asynccontextmanager
async def _asking(
    config: EvaluationConfig,
    *,
    lodger: Resident,
    incidents: list[OnIncident],
    on_incident: OnIncident,
    **_: Any,
) -> AsyncIterator[Serving]:
    """As `deployment.asking.asking`, of the server that is there."""
    incidents.append(on_incident)
    try:
        yield await lodger.target(config.adapter)
    finally:
        incidents.remove(on_incident)


def _demand_one_model(configs: Sequence[EvaluationConfig]) -> None:
    first, *others = (config.model_copy(update={"adapter": None}) for config in configs)
    if any(config.url is not None for config in configs):
        raise ConfigurationError(
            "a server that runs already is asked about one model at a time",
            fix="name one of its models with --model, or leave --url out",
        )
    if any(other != first for other in others):
        raise ConfigurationError(
            "on one server, a model and adapters of it can be evaluated together",
            why=f"these are {', '.join(sorted({str(config.model) for config in configs}))}",
            fix="evaluate them one by one, and compare the runs: enginehouse compare",
        )
    if len({config.adapter for config in configs}) < len(configs):
        raise ConfigurationError("a model is named twice", fix="name each once")
