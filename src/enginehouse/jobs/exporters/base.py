"""What an exporter is: it takes a run's figures somewhere else, and updates them there.

Each exporter is a file in this folder with two classes, its settings and itself, and is named in
`registry.py`. A run is identified by its id: exporting it again replaces what an earlier export
wrote, and doubles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from enginehouse.core.strict_model import StrictModel
from enginehouse.jobs.exporters.figures import ExportedRun

_FIGURES_ALONE = "figures and their labels are exported; files stay in the run's folder"


class ExportSettings(StrictModel):
    """A section of `export` in a launch file: what all exporters have in common."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "copy_artifacts": _FIGURES_ALONE,
        "copy_logs": _FIGURES_ALONE,
        "log_artifacts": _FIGURES_ALONE,
        "log_logs": _FIGURES_ALONE,
        "only_required": _FIGURES_ALONE,
        "job_dirs": "runs are found by their ids or folders",
    }
    """Keys of the original launcher that are accepted and have no effect, and why."""

    log_metrics: tuple[str, ...] = ()
    """Only the figures whose names (`task/metric`) contain one of these."""


class Exporter(Protocol):
    """Where a run's figures go. Made as `Exporter(settings)`, with `settings_class` for them.

    Making one neither reads nor imports anything.
    """

    @property
    def settings_class(self) -> type[ExportSettings]:
        """The class of its settings."""
        ...

    def export(self, run: ExportedRun) -> str:
        """Write the run's figures, or update them, and return where they are. Blocking.

        Raises ExportError and StoreError; what was there before is then still there.
        """
        ...
