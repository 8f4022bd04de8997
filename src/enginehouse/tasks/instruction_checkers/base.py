"""What a checker is: an instruction's arguments, and the verdict on a response."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Relation = Literal["less than", "at least"]


class Checker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One verifiable instruction; its fields are IFEval's kwargs of that instruction."""

    def follows(self, response: str) -> bool:
        """Whether `response`, which is not blank, follows the instruction. Pure."""
        raise NotImplementedError


def holds(count: int, relation: Relation, threshold: int) -> bool:
    """IFEval's two comparisons: "less than" excludes the threshold, "at least" includes it."""
    return count < threshold if relation == "less than" else count >= threshold


def require_pattern(pattern: str) -> None:
    """Raise ValueError unless this is a regular expression, which is how IFEval uses it."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
