"""IFEval: 541 prompts with instructions whose following a program can verify.

Zhou et al., "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911; scored
as google-research/instruction_following_eval does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.tasks.base import Dataset, Generate, Item, Score, TaskInfo
from enginehouse.tasks.data import read_rows, user_source
from enginehouse.tasks.instruction_checkers.scoring import (
    HEADLINE,
    METRICS,
    read_items,
    score_response,
)

HUB: Final = "hf:google/IFEval:ifeval_input_data.jsonl"
SIZE: Final = 541
MAX_TOKENS: Final = 1280


class IFEval:
    """The benchmark, from the hub or from a user's file in the original's format."""

    @property
    def info(self) -> TaskInfo:
        """Facts about the task; reading them loads no data."""
        return TaskInfo(
            name="ifeval",
            version=2,
            description="follow verifiable instructions (IFEval, all 25 checkers)",
            kind="generate",
            headline=HEADLINE,
            metrics=METRICS,
            licence="Apache-2.0",
            size=SIZE,
            source=HUB,
            needs="the Hugging Face hub, or --data with input_data.jsonl",
        )

    def load(self, *, data: str | None, seed: int) -> Dataset:  # noqa: ARG002  nothing is drawn
        """The prompts of the JSONL file `data` (a path, or hf:owner/name:file), or the hub's.

        Raises DataError for a file that cannot be had or read, and for what no checker can check.
        """
        source = user_source(data or HUB)
        rows = [row.fields for row in read_rows(source)]
        return Dataset(
            items=read_items(rows, where=source.name),
            source=source.name,
            licence="the user's file" if data else "Apache-2.0",
            digest=source.digest,
            full_size=SIZE,
        )

    def ask(self, item: Item) -> Generate:
        """The prompt as the only turn."""
        return Generate(
            prompt=ChatPrompt((Message("user", item.data["prompt"]),)), max_tokens=MAX_TOKENS
        )

    def score_text(self, item: Item, text: str) -> Score:
        """Correct if every instruction is followed strictly; never unparsable."""
        return score_response(item, text)

    def score_choice(self, item: Item, loglikelihoods: Sequence[float]) -> Score:
        """Not asked for: `ask` gives no choices."""
        raise NotImplementedError
