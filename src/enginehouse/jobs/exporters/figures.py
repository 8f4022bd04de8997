"""A run's figures with everything that they must not be read without."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from statistics import NormalDist
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Provenance
from enginehouse.deployment.configuration import read_yaml
from enginehouse.evaluation.summary import summarise
from enginehouse.results.summary import Figure, HarnessFigure, HarnessWork, Report, TaskReport
from enginehouse.statistics.intervals import Interval
from enginehouse.store.runs import Run

_CONFIDENCE = 0.95
NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]")
"""What trackers refuse in the name of a metric or a tag."""


class ExportedFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a task. `value` is None for the reason in `why_none`.

    `low` and `high` bound its interval at `confidence`, made by `method`; None if too little was
    measured. `n` counts the samples that it was measured on (with k: the items). `subset` is true
    unless every item of the benchmark was evaluated. `harness`, as in "lm-eval 0.4.13", is whose
    task it is, None for native ones; its own figures have its `standard_error` where it states one,
    and an interval made from that.
    """

    task: str
    task_version: str
    harness: str | None
    data_digest: str
    subset: bool
    items: int
    samples_per_item: int
    metric: str
    value: float | None
    low: float | None
    high: float | None
    confidence: float | None
    method: str | None
    n: int | None
    standard_error: float | None
    why_none: str | None

    @property
    def name(self) -> str:
        """Its name within the run."""
        return f"{self.task}/{self.metric}"


class RunLabels(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's figures belong to. Digests and versions are None where they are not known."""

    run: str
    model: str
    weights_digest: str | None
    adapter: str | None
    adapter_digest: str | None
    chat_template_digest: str | None
    engine: str | None
    engine_version: str | None
    seed: int
    temperature: float
    created: datetime
    finished: datetime | None
    complete: bool


class ExportedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it is exported. `notes` are those of its report."""

    labels: RunLabels
    figures: tuple[ExportedFigure, ...]
    notes: tuple[str, ...]

    def only(self, names: tuple[str, ...]) -> ExportedRun:
        """The figures whose names contain one of `names`; all of them without any."""
        if not names:
            return self
        chosen = tuple(f for f in self.figures if any(name in f.name for name in names))
        return msgspec.structs.replace(self, figures=chosen)


COLUMNS: Mapping[str, Any] = {
    **{field.name: field.type for field in msgspec.structs.fields(RunLabels)},
    **{field.name: field.type for field in msgspec.structs.fields(ExportedFigure)},
}
"""The columns of a table of figures, and their types."""


def rows_of(run: ExportedRun) -> list[dict[str, Any]]:
    """A row for each figure, with the columns COLUMNS."""
    labels = msgspec.structs.asdict(run.labels)
    return [{**labels, **msgspec.structs.asdict(figure)} for figure in run.figures]


def metrics_of(run: ExportedRun) -> dict[str, float]:
    """Every figure that has a value, and beside it the bounds of its interval and n."""
    metrics: dict[str, float] = {}
    for figure in run.figures:
        name = NOT_IN_A_NAME.sub("_", figure.name)
        parts = {"": figure.value, "_low": figure.low, "_high": figure.high, "_n": figure.n}
        if figure.value is not None:
            metrics |= {name + part: float(v) for part, v in parts.items() if v is not None}
    return metrics


def labels_of(run: ExportedRun) -> dict[str, Any]:
    """The labels of the run and of its tasks, flat, without those that are not known."""
    labels = dict(msgspec.to_builtins(run.labels))
    for figure in run.figures:
        labels |= {
            f"{figure.task}.version": figure.task_version,
            f"{figure.task}.data_digest": figure.data_digest,
            f"{figure.task}.subset": figure.subset,
            f"{figure.task}.items": figure.items,
            f"{figure.task}.samples_per_item": figure.samples_per_item,
            f"{figure.task}.harness": figure.harness,
        }
        if figure.why_none:
            labels[f"{figure.name}.why_none"] = figure.why_none
    return {name: value for name, value in labels.items() if value is not None}


def read_figures(run: Run) -> ExportedRun:
    """A run's figures, finished or not. Blocking: reads its journal.

    Raises ConfigurationError for an experiment or a run without any sample, and StoreError.
    """
    run.require_kind("evaluation", instead="play analyze")
    report = summarise(run)
    if not report.tasks:
        raise ConfigurationError(
            f"the run {run.info.id} has no figures yet",
            why="it has not sent any request",
            fix=f"`enginehouse resume {run.reference}`, then export it",
        )
    return ExportedRun(
        labels=_labels(run, report),
        figures=tuple(figure for task in report.tasks for figure in _figures(task)),
        notes=report.notes,
    )


def _labels(run: Run, report: Report) -> RunLabels:
    return RunLabels(
        run=report.run,
        model=report.model,
        weights_digest=_same(report.provenance, "weights_digest"),
        adapter=_adapter(run),
        adapter_digest=_same(report.provenance, "adapter_digest"),
        chat_template_digest=_same(report.provenance, "chat_template_digest"),
        engine=_same(report.provenance, "engine"),
        engine_version=_same(report.provenance, "engine_version"),
        seed=report.seed,
        temperature=report.temperature,
        created=run.info.created,
        finished=run.info.finished,
        complete=report.complete,
    )


def _same(provenance: tuple[Provenance, ...], attribute: str) -> str | None:
    """What all that answered have in common; several values are joined."""
    values = dict.fromkeys(getattr(one, attribute) for one in provenance)
    return ", ".join(value for value in values if value is not None) or None


def _adapter(run: Run) -> str | None:
    adapter = read_yaml(run.config_path).get("adapter") if run.config_path.exists() else None
    return None if adapter is None else str(adapter)


def _figures(task: TaskReport) -> Iterator[ExportedFigure]:
    yield _figure(task, "headline", task.headline, why_none=task.no_headline)
    for metric, figure in task.metrics.items():
        yield _figure(task, metric, figure)
    for at in task.at_k:
        for metric, at_k in (("pass", at.pass_at_k), ("mean", at.mean_at_k)):
            why = None if at_k else f"no item has {at.k} samples with a score"
            yield _figure(task, f"{metric}@{at.k}", at_k, why_none=why)
        for metric, figure in at.best_at_k.items():
            yield _figure(task, f"best@{at.k} {metric}", figure)
    if isinstance(task.harness, HarnessWork):
        for own in task.harness.figures:
            named = f"{task.harness.name} {own.name}"
            value = Figure(value=own.value, interval=_interval(own))
            yield _figure(task, named, value, standard_error=own.standard_error)


def _interval(figure: HarnessFigure) -> Interval | None:
    """The normal interval, value ± 1.96 standard errors; None if the harness states no error."""
    error = figure.standard_error
    if error is None:
        return None
    half = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2) * error
    return Interval(
        low=figure.value - half,
        high=figure.value + half,
        confidence=_CONFIDENCE,
        method="normal, from the harness's standard error",
    )


def _figure(
    task: TaskReport,
    metric: str,
    figure: Figure | None,
    *,
    standard_error: float | None = None,
    why_none: str | None = None,
) -> ExportedFigure:
    interval = figure.interval if figure else None
    return ExportedFigure(
        task=task.task,
        task_version=str(task.version),
        harness=f"{task.harness.name} {task.harness.version}"
        if isinstance(task.harness, HarnessWork)
        else None,
        data_digest=task.digest,
        subset=task.subset,
        items=task.items,
        samples_per_item=task.samples_per_item,
        metric=metric,
        value=figure.value if figure else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        confidence=interval.confidence if interval else None,
        method=interval.method if interval else None,
        n=figure.n if figure else None,
        standard_error=standard_error,
        why_none=why_none,
    )
