"""Weights & Biases: a run there for each run, with an id that is derived from it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from enginehouse.core.errors import ExportError
from enginehouse.jobs.exporters.base import ExportSettings
from enginehouse.jobs.exporters.figures import ExportedRun, labels_of, metrics_of
from enginehouse.store.layout import Layout

_ONE_RUN = "a run has all of its tasks, and is one run there"


class WandbSettings(ExportSettings):
    """A project."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        **ExportSettings.not_acted_on,
        "log_mode": _ONE_RUN,
        "run_id": "the id is derived from the run's, so that an export updates it",
    }

    project: str
    """The project."""
    entity: str | None = None
    """The user or team; by default your own."""
    name: str | None = None
    """The name of the run there; by default the run's id."""
    group: str | None = None
    """A group of runs."""
    job_type: str = "evaluation"
    """The kind of run."""
    tags: tuple[str, ...] = ()
    """Further tags."""
    description: str | None = None
    """A note."""
    extra_metadata: Mapping[str, Any] = Field(default_factory=dict)
    """Further keys of the run's configuration."""
    mode: Literal["online", "offline"] | None = None
    """By default WANDB_MODE, else online; `wandb sync` uploads what was written offline."""
    dir: Path | None = None
    """The folder of its files; by default WANDB_DIR, else `wandb` among Enginehouse's own."""


class WandbExporter:
    """The summary has `task/metric`, with `_low`, `_high` and `_n` beside each; labels are config.

    Nothing else is sent: no history, no console, no code, no readings of this machine.
    """

    settings_class: ClassVar[type[WandbSettings]] = WandbSettings

    def __init__(self, settings: WandbSettings) -> None:
        self._settings = settings

    def export(self, run: ExportedRun) -> str:
        """Create the run in the project, or update it."""
        try:
            import wandb
        except ImportError as error:
            raise ExportError(
                "exporting to Weights & Biases needs its package",
                kind="missing_package",
                why=str(error),
                fix="pip install 'enginehouse[wandb]'",
            ) from error
        try:
            return self._write(wandb, run)
        except (wandb.errors.Error, OSError, ValueError) as error:
            raise ExportError(
                "Weights & Biases rejected the figures",
                kind="refused",
                why=str(error),
                fix="check project, entity and WANDB_API_KEY, or export with mode=offline; then "
                "export again; figures are updated, not duplicated",
            ) from error
        finally:
            wandb.teardown()

    def _write(self, wandb: Any, run: ExportedRun) -> str:
        chosen = self._settings
        own = Layout.from_environment().state / "wandb"
        values = {"mode": chosen.mode} if chosen.mode else {}
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            **values,
        )
        _require_key(wandb, settings)
        folder = chosen.dir or os.environ.get("WANDB_DIR") or own
        Path(folder).mkdir(parents=True, exist_ok=True)
        there = wandb.init(
            id=re.sub(r"[/\\#?%:]", "-", run.labels.run)[:128],  # of characters it may have there
            resume="allow",
            project=chosen.project,
            entity=chosen.entity,
            name=chosen.name or run.labels.run,
            group=chosen.group,
            job_type=chosen.job_type,
            tags=list(chosen.tags) or None,
            notes=chosen.description,
            config={**chosen.extra_metadata, **labels_of(run)},
            allow_val_change=True,
            dir=str(folder),
            settings=settings,
        )
        try:
            there.summary.update(metrics_of(run))
        finally:
            there.finish()
        if there.settings.mode == "offline":
            return f"{Path(there.dir).parent} (offline: `wandb sync` uploads it)"
        return str(there.url)


def _require_key(wandb: Any, settings: Any) -> None:
    """Raise ExportError if there is no key, instead of asking for one on a terminal."""
    if settings.mode == "online" and not wandb.login(prompt=False):
        raise ExportError(
            "there is no API key for Weights & Biases",
            kind="no_key",
            fix="set WANDB_API_KEY, run `wandb login`, or export with mode=offline",
        )
