"""MLflow: a run of the tracking server for each run, found again by a tag."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec
from pydantic import Field, model_validator

from enginehouse.core.errors import ExportError
from enginehouse.jobs.exporters.base import ExportSettings
from enginehouse.jobs.exporters.figures import NOT_IN_A_NAME, ExportedRun, labels_of, metrics_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_TAG = "enginehouse.run"
_ARTIFACT = "enginehouse.json"
_BATCH = 500  # metrics, and half as many of anything else, that a server takes at once
_LONGEST_TAG = 4000  # characters


class MlflowSettings(ExportSettings):
    """A tracking server and an experiment there."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        **ExportSettings.not_acted_on,
        "skip_existing": "an export updates what is there",
        "log_config_params": "the configuration stays in the run's folder",
        "log_config_params_max_depth": "the configuration stays in the run's folder",
        "exclude_patterns": "no files are exported",
    }

    tracking_uri: str | None = None
    """The server's address, or the environment variable that holds it; else MLFLOW_TRACKING_URI."""
    experiment_name: str = "enginehouse"
    """The experiment, which is created if there is none."""
    run_name: str | None = None
    """The name of the run there; by default the run's id."""
    description: str | None = None
    """A note."""
    tags: Mapping[str, str] = Field(default_factory=dict)
    """Further tags."""
    extra_metadata: Mapping[str, Any] = Field(default_factory=dict)
    """Further tags, too."""

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if self.tracking_uri and _without_password(self.tracking_uri) != self.tracking_uri:
            raise ValueError(
                "tracking_uri holds a password: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the environment instead"
            )
        return self


class MlflowExporter:
    """Metrics `task/metric`, with `_low`, `_high` and `_n` beside each; labels are tags.

    The artifact enginehouse.json has everything. A metric is written again only if its value has
    changed, so that its history in MLflow has a point for each different value.
    """

    settings_class: ClassVar[type[MlflowSettings]] = MlflowSettings

    def __init__(self, settings: MlflowSettings) -> None:
        self._settings = settings

    def export(self, run: ExportedRun) -> str:
        """Create the run in MLflow, or update it."""
        try:
            import mlflow
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise ExportError(
                "exporting to MLflow needs its package",
                kind="missing_package",
                why=str(error),
                fix="pip install 'enginehouse[mlflow]'",
            ) from error
        # MLflow's own seven retries keep silent for four minutes where nothing answers.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        address = self._address()
        try:
            client = mlflow.MlflowClient(tracking_uri=address)
            there = self._find(client, run) or self._create(client, run)
            self._write(client, there, run)
        except (MlflowException, OSError, ImportError) as error:
            raise ExportError(
                f"MLflow at {_without_password(address)} rejected the figures",
                kind="refused",
                why=_without_password(str(error)),
                fix="check tracking_uri, and MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD; then export again; figures are updated, not "
                "duplicated",
            ) from error
        place = f"experiment {self._settings.experiment_name}, run {there.info.run_id}"
        return f"{_without_password(address)}, {place}"

    def _address(self) -> str:
        given = self._settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if given and "://" not in given:
            given = os.environ.get(given, given)
        if not given:
            raise ExportError(
                "no MLflow tracking server is configured",
                kind="no_address",
                fix="set tracking_uri, or MLFLOW_TRACKING_URI in the environment",
            )
        return given.rstrip("/") if given.startswith("http") else given

    def _find(self, client: MlflowClient, run: ExportedRun) -> Run | None:
        """The run that an earlier export made. A deleted one is not found."""
        experiment = client.get_experiment_by_name(self._settings.experiment_name)
        if experiment is None:
            return None
        wanted = f"tags.`{RUN_TAG}` = '{run.labels.run}'"
        runs = client.search_runs([experiment.experiment_id], filter_string=wanted, max_results=1)
        return runs[0] if runs else None

    def _create(self, client: MlflowClient, run: ExportedRun) -> Run:
        experiment = client.get_experiment_by_name(self._settings.experiment_name)
        place = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(self._settings.experiment_name)
        )
        return client.create_run(
            place,
            start_time=int(run.labels.created.timestamp() * 1000),
            tags={RUN_TAG: run.labels.run},
            run_name=self._settings.run_name or run.labels.run,
        )

    def _write(self, client: MlflowClient, there: Run, run: ExportedRun) -> None:
        from mlflow.entities import Metric, RunTag

        identifier, before = there.info.run_id, there.data.metrics
        now = int(time.time() * 1000)
        values = metrics_of(run)
        gone = {name: math.nan for name in before if name not in values}
        metrics = [
            Metric(key=name, value=value, timestamp=now, step=0)
            for name, value in {**values, **gone}.items()
            if not _equal(before.get(name), value)
        ]
        tags = [
            RunTag(key=name, value=str(value)[:_LONGEST_TAG])
            for name, value in self._tags(run).items()
        ]
        for first in range(0, len(metrics), _BATCH):
            client.log_batch(identifier, metrics=metrics[first : first + _BATCH])
        for first in range(0, len(tags), _BATCH // 10):
            client.log_batch(identifier, tags=tags[first : first + _BATCH // 10])
        document = msgspec.json.format(msgspec.json.encode(run)).decode()
        client.log_text(identifier, document, _ARTIFACT)
        finished = run.labels.finished
        client.set_terminated(
            identifier,
            status="FINISHED" if run.labels.complete else "RUNNING",
            end_time=int(finished.timestamp() * 1000) if finished else now,
        )

    def _tags(self, run: ExportedRun) -> dict[str, Any]:
        tags: dict[str, Any] = {
            **{k: v for k, v in self._settings.tags.items() if v},
            **{k: v for k, v in self._settings.extra_metadata.items() if v is not None},
            **{f"enginehouse.{name}": value for name, value in labels_of(run).items()},
        }
        if self._settings.description:
            tags["mlflow.note.content"] = self._settings.description
        return {NOT_IN_A_NAME.sub("_", name): value for name, value in tags.items()}


def _equal(one: float | None, other: float) -> bool:
    return one is not None and (one == other or (math.isnan(one) and math.isnan(other)))


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
