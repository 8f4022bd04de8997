"""Our own short prompts, scored by IFEval's checkers. Small models can answer them."""

from __future__ import annotations

from importlib import resources
from typing import Final

from enginehouse.core.errors import DataError
from enginehouse.tasks.base import Dataset, TaskInfo
from enginehouse.tasks.data import Source, read_rows
from enginehouse.tasks.instruction_checkers import SHORT_TEXT_CHECKERS
from enginehouse.tasks.instruction_checkers.scoring import (
    HEADLINE,
    METRICS,
    InstructionTask,
    read_items,
)

FILE: Final = "instructions.jsonl"
SIZE: Final = 60


class Instructions(InstructionTask):
    """Every checker at least twice; the first fifteen prompts ask for one short answer each.

    The prompts are not IFEval's, and a language is required of longer texts only, so the figures
    are not IFEval figures.
    """

    max_tokens = 256
    checkers = SHORT_TEXT_CHECKERS

    info = TaskInfo(
        name="instructions",
        version=2,
        description="follow verifiable instructions in short answers (our own prompts)",
        kind="generate",
        headline=HEADLINE,
        metrics=METRICS,
        licence="Apache-2.0",
        size=SIZE,
        source="shipped with enginehouse",
    )

    def load(self, *, data: str | None, seed: int) -> Dataset:  # noqa: ARG002  nothing is drawn
        """All 60 prompts, in the order of the file. DataError if `data` is given."""
        if data is not None:
            raise DataError(
                f"the task instructions has its own prompts and accepts no data ({data!r})",
                fix="for your own prompts in IFEval's format use the task ifeval",
            )
        shipped = resources.files("enginehouse.tasks").joinpath(FILE).read_bytes()
        source = Source(content=shipped, name=f"enginehouse/tasks/{FILE}", kind=".jsonl")
        items = read_items([row.fields for row in read_rows(source)], where=FILE)
        return source.dataset(items, licence="Apache-2.0", full_size=SIZE)
