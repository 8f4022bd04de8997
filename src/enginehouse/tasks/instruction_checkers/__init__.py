"""IFEval's 25 checkers: which verifiable instructions a response follows.

The semantics, quirks included, are those of google-research/instruction_following_eval (Zhou et
al., "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from enginehouse.core.errors import DataError, nearest
from enginehouse.tasks.instruction_checkers.checkers import CHECKERS, SHORT_TEXT_CHECKERS, Checker

__all__ = ["CHECKERS", "SHORT_TEXT_CHECKERS", "Checker", "build_checker"]


def build_checker(
    instruction: str,
    arguments: Mapping[str, Any],
    *,
    where: str,
    checkers: Mapping[str, type[Checker]] = CHECKERS,
) -> Checker:
    """The checker of `instruction`; arguments that are None count as not given.

    Raises DataError, which names `where`, for an unknown instruction and for arguments that are
    missing, of the wrong type or unknown (the original would draw missing ones at random).
    """
    kind = checkers.get(instruction)
    if kind is None:
        close = nearest(instruction, checkers)
        raise DataError(
            f"{where}: there is no instruction {instruction!r}",
            fix=f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(checkers))}",
        )
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        wanted = ", ".join(kind.__struct_fields__) or "no arguments"
        raise DataError(
            f"{where}: the arguments of {instruction!r} are wrong",
            why=str(error),
            fix=f"it takes {wanted}",
        ) from error
