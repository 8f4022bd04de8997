"""How prompts with verifiable instructions are read and their responses scored.

Both levels, prompt and instruction, in both measures, strict and loose, as
google-research/instruction_following_eval computes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final

import msgspec

from enginehouse.core.errors import DataError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.tasks.base import Generate, Item, Measure, Outcome, Score, Task
from enginehouse.tasks.instruction_checkers import CHECKERS, Checker, build_checker

HEADLINE: Final = "prompt_level_strict_acc"
METRICS: Final = ("prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc")


class InstructionTask(Task):
    """A task whose items are prompts with verifiable instructions: see `read_items`."""

    max_tokens: ClassVar[int]
    checkers: ClassVar[Mapping[str, type[Checker]]] = CHECKERS

    def ask(self, item: Item) -> Generate:
        """The prompt as the only turn."""
        prompt = ChatPrompt((Message("user", item.data["prompt"]),))
        return Generate(prompt=prompt, max_tokens=self.max_tokens)

    def score_text(self, item: Item, text: str) -> Score:
        """Correct if every instruction is followed strictly; never unparsable."""
        return score_response(item, text, checkers=self.checkers)


class _Row(msgspec.Struct, frozen=True):
    """One line of IFEval's input_data.jsonl; further fields are left out."""

    key: int | str
    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    instruction_id_list: Annotated[list[str], msgspec.Meta(min_length=1)]
    kwargs: list[dict[str, Any]]


def read_items(rows: Sequence[Mapping[str, Any]], *, where: str) -> list[Item]:
    """The items of rows in IFEval's format; arguments that are null are dropped.

    Raises DataError, naming `where`, the key and the instruction, for a row of another shape, an
    unknown instruction, wrong arguments, and a key that occurs twice.
    """
    items: dict[str, Item] = {}
    for number, raw in enumerate(rows, start=1):
        try:
            row = msgspec.convert(raw, _Row)
        except msgspec.ValidationError as error:
            raise DataError(
                f"{where}: row {number} is not an IFEval prompt",
                why=str(error),
                fix="a row has key, prompt, instruction_id_list and kwargs",
            ) from error
        place = f"{where}: prompt {row.key}"
        if str(row.key) in items:
            raise DataError(f"{place}: this key occurs twice", fix="give each prompt its own key")
        if len(row.kwargs) != len(row.instruction_id_list):
            raise DataError(
                f"{place}: {len(row.instruction_id_list)} instructions, {len(row.kwargs)} kwargs",
                fix="give each instruction one entry in kwargs, {} if it takes nothing",
            )
        kwargs = [
            {name: value for name, value in given.items() if value is not None}
            for given in row.kwargs
        ]
        for instruction, arguments in zip(row.instruction_id_list, kwargs, strict=True):
            build_checker(instruction, arguments, where=place)
        items[str(row.key)] = Item(
            id=str(row.key),
            data={
                "prompt": row.prompt,
                "instruction_id_list": row.instruction_id_list,
                "kwargs": kwargs,
            },
        )
    return list(items.values())


def score_response(
    item: Item, text: str, *, checkers: Mapping[str, type[Checker]] = CHECKERS
) -> Score:
    """Correct if the response follows every instruction to the letter.

    METRICS are measured beside it; `answer` says which instructions were followed.
    """
    names: list[str] = item.data["instruction_id_list"]
    demanded = [
        build_checker(name, arguments, where=f"prompt {item.id}", checkers=checkers)
        for name, arguments in zip(names, item.data["kwargs"], strict=True)
    ]
    strict = [_follows(checker, [text]) for checker in demanded]
    versions = loose_versions(text)
    loose = [
        followed or _follows(checker, versions)
        for followed, checker in zip(strict, demanded, strict=True)
    ]
    return Score(
        outcome=Outcome.CORRECT if all(strict) else Outcome.WRONG,
        measures={
            "prompt_level_loose_acc": Measure(float(all(loose))),
            "inst_level_strict_acc": Measure(float(sum(strict)), float(len(strict))),
            "inst_level_loose_acc": Measure(float(sum(loose)), float(len(loose))),
        },
        answer="; ".join(
            f"{name}: {'followed' if followed else 'not followed'}"
            for name, followed in zip(names, strict, strict=True)
        ),
    )


def loose_versions(response: str) -> list[str]:
    """The response and seven versions: without asterisks, first line, last line, and mixtures.

    Loose accuracy forgives markdown, an introduction and a closing remark. Equal versions are
    given once.
    """
    lines = response.split("\n")
    cut = [
        response,
        *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])),
    ]
    return list(dict.fromkeys([*cut, *(version.replace("*", "") for version in cut)]))


def _follows(checker: Checker, versions: Sequence[str]) -> bool:
    """Whether any version does; a blank one follows nothing."""
    return any(version.strip() and checker.follows(version) for version in versions)
