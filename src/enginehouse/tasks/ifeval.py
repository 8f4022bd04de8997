"""IFEval: 541 prompts with instructions that a program can verify.

Zhou et al., "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911; scored
as google-research/instruction_following_eval does.
"""

from __future__ import annotations

from typing import Final

from enginehouse.tasks.base import Dataset, TaskInfo
from enginehouse.tasks.data import read_rows, user_source
from enginehouse.tasks.instruction_checkers.scoring import (
    HEADLINE,
    METRICS,
    InstructionTask,
    read_items,
)

HUB: Final = "hf:google/IFEval:ifeval_input_data.jsonl"
SIZE: Final = 541


class IFEval(InstructionTask):
    """The benchmark, from the hub or from a user's file in the original's format."""

    max_tokens = 1280

    info = TaskInfo(
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

        Raises DataError for a file that cannot be read, and for instructions without a checker.
        """
        source = user_source(data or HUB)
        rows = [row.fields for row in read_rows(source)]
        return source.dataset(
            read_items(rows, where=source.name),
            licence="the user's file" if data else "Apache-2.0",
            full_size=SIZE,
        )
