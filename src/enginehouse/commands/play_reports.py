"""What is derived from an experiment's journal: a replay, and traces for a trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from enginehouse.arena.replay import replay_matches
from enginehouse.arena.traces import agent_traces
from enginehouse.report.replay_page import write_replay
from enginehouse.results.experiment import ExperimentReport
from enginehouse.store.runs import Run


def write_replay_pages(run: Run, report: ExperimentReport, path: Path) -> tuple[Path, ...]:
    """Write the replay to `path`, and what does not fit to further files beside it.

    Returns the files. Raises StoreError. Blocking.
    """
    return write_replay(
        replay_matches(run.journal_path),
        path,
        title=report.name,
        subtitle=f"{report.game}, run {report.run}, {report.finished:,} matches",
    )


def trace_lines(run: Run) -> Iterator[str]:
    """One JSON document for each agent of each match that ended well. Raises StoreError."""
    encoder = msgspec.json.Encoder()
    for trace in agent_traces(run.journal_path):
        yield encoder.encode(trace).decode()
