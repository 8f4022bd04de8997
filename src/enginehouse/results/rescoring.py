"""The changes from scoring a run's answers again."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from enginehouse.results.summary import Figure, Report


class TaskRescoring(msgspec.Struct, frozen=True, kw_only=True):
    """One task's answers, scored by `version` of the task instead of `version_before`.

    `changes` counts the samples that went from one outcome to another, as "wrong → correct". A
    headline may be None: see the report.
    """

    task: str
    version_before: int | str
    version: int | str
    answers: int
    changes: Mapping[str, int]
    headline_before: Figure | None
    headline: Figure | None


class Rescoring(msgspec.Struct, frozen=True, kw_only=True):
    """A run after its answers were scored again; nothing was asked.

    What a harness scored keeps its scores, and is not among `tasks`.
    """

    report: Report
    tasks: tuple[TaskRescoring, ...]
