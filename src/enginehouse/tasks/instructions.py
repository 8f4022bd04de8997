"""Our own short prompts, judged by IFEval's checkers. Small models can answer them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Final

from enginehouse.core.errors import DataError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.tasks.base import Dataset, Generate, Item, Score, TaskInfo
from enginehouse.tasks.instruction_checkers.scoring import (
    HEADLINE,
    METRICS,
    read_items,
    score_response,
)
from enginehouse.tasks.instruction_checkers.short_texts import SHORT_TEXT_CHECKERS

FILE: Final = "instructions.jsonl"
SIZE: Final = 60
MAX_TOKENS: Final = 256


class Instructions:
    """Every checker at least twice; the first fifteen prompts ask for one short answer each.

    The prompts are not IFEval's, and languages are demanded of longer texts only, so the figures
    are not IFEval figures.
    """

    @property
    def info(self) -> TaskInfo:
        """Facts about the task; reading them loads no data."""
        return TaskInfo(
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
                f"the task instructions ships its own prompts and takes no data ({data!r})",
                fix="for prompts of yours in IFEval's format use the task ifeval",
            )
        shipped = resources.files("enginehouse.tasks").joinpath(FILE).read_bytes()
        return Dataset(
            items=read_items([json.loads(line) for line in shipped.splitlines()], where=FILE),
            source=f"enginehouse/tasks/{FILE}",
            licence="Apache-2.0",
            digest=hashlib.sha256(shipped).hexdigest(),
            full_size=SIZE,
        )

    def ask(self, item: Item) -> Generate:
        """The prompt as the only turn."""
        return Generate(
            prompt=ChatPrompt((Message("user", item.data["prompt"]),)), max_tokens=MAX_TOKENS
        )

    def score_text(self, item: Item, text: str) -> Score:
        """Correct if every instruction is followed; never unparsable."""
        return score_response(item, text, checkers=SHORT_TEXT_CHECKERS)

    def score_choice(self, item: Item, loglikelihoods: Sequence[float]) -> Score:
        """Not asked for: `ask` gives no choices."""
        raise NotImplementedError
