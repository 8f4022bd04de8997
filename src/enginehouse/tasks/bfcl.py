"""The Berkeley Function Calling Leaderboard, its single-turn questions for Python functions.

Patil et al., "The Berkeley Function Calling Leaderboard (BFCL): From Tool Use to Agentic
Evaluation of Large Language Models", ICML 2025; data of BFCL v4, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from enginehouse.core.errors import DataError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.tasks.base import CallTools, Dataset, Item, Outcome, Score, Task, TaskInfo
from enginehouse.tasks.bfcl_scoring import matches
from enginehouse.tasks.data import Row, Source, package_source, read_rows, user_source
from enginehouse.tools import CheckedCall

PACKAGE: Final = "bfcl-eval==2026.3.23"
FOLDER: Final = "bfcl_eval/data"
ANSWERS: Final = "possible_answer"
MAX_TOKENS: Final = 256
# the original's GORILLA_TO_OPENAPI, restricted to what these data use
_JSON_TYPES: Final[Mapping[str, str]] = {
    "integer": "integer",
    "number": "number",
    "float": "number",
    "string": "string",
    "boolean": "boolean",
    "array": "array",
    "tuple": "array",
    "dict": "object",
    "object": "object",
    "any": "string",
}


class _Category(Task):
    """A category whose answer is one call."""

    category: ClassVar[str]
    size: ClassVar[int]
    summary: ClassVar[str]
    questions_sha256: ClassVar[str]
    answers_sha256: ClassVar[str]

    @property
    def info(self) -> TaskInfo:
        """Facts about the task; reading them loads no data."""
        file = f"BFCL_v4_{self.category}.json"
        return TaskInfo(
            name=f"bfcl/{self.category}",
            version=1,
            description=f"{self.summary}; one call is required and allowed, dots in names become "
            "underscores",
            kind="call",
            headline="the call is right, by BFCL's abstract syntax tree rules",
            metrics=("schema_valid", "truncated"),
            licence="Apache-2.0",
            size=self.size,
            source=f"{FOLDER}/{file} in {PACKAGE}, or `data`: {file} with {ANSWERS}/{file} beside "
            "it, as the leaderboard has them",
        )

    def load(self, *, data: str | None, seed: int) -> Dataset:  # noqa: ARG002  nothing is drawn
        """All items, with the original's ids.

        Raises DataError, or ProvisioningError if the package is not available. Blocking.
        """
        file = f"BFCL_v4_{self.category}.json"
        if data is None:
            questions = package_source(
                PACKAGE, member=f"{FOLDER}/{file}", sha256=self.questions_sha256
            )
            answers = package_source(
                PACKAGE, member=f"{FOLDER}/{ANSWERS}/{file}", sha256=self.answers_sha256
            )
        else:
            questions = user_source(data)
            answers = user_source(str(Path(data).parent / ANSWERS / Path(data).name))
        return Dataset(
            items=_items(_lines(questions), _lines(answers)),
            source=questions.name,
            licence="Apache-2.0",
            digest=Source(content=questions.content + answers.content, name="", kind="").digest,
            full_size=self.size,
        )

    def ask(self, item: Item) -> CallTools:
        """The question with its functions, one of which must be called, once."""
        functions = item.data["functions"]
        return CallTools(
            prompt=ChatPrompt(tuple(Message(**turn) for turn in item.data["question"])),
            tools=tuple(
                _tool(wire, functions[at]) for at, wire in enumerate(_wire_names(functions))
            ),
            choice="required",
            max_calls=1,
            max_tokens=MAX_TOKENS,
        )

    def score_calls(self, item: Item, calls: Sequence[CheckedCall]) -> Score:
        """Correct if there is one call and it is one of the possible answers."""
        functions = item.data["functions"]
        names = dict(zip(_wire_names(functions), functions, strict=True))
        expected, answers = next(iter(item.data["answer"].items()))
        function = next(f for f in functions if f["name"] == expected)
        right = len(calls) == 1 and matches(
            function,
            name=names[calls[0].name]["name"],
            arguments=calls[0].arguments,
            answers=answers,
        )
        return Score(outcome=Outcome.CORRECT if right else Outcome.WRONG)


class SimplePython(_Category):
    """400 questions with one Python function each."""

    category = "simple_python"
    size = 400
    summary = "call the only function with the right arguments"
    questions_sha256 = "82dd63ba502eb2520c6b5d1d9a5c4b590e03ff261565175561f6228a367d1991"
    answers_sha256 = "90cd5bc653690ee8e459b5b3f3fc9458606f7f3fcbf795bb51b7dc581f8c86dc"


class Multiple(_Category):
    """200 questions with two to four Python functions each."""

    category = "multiple"
    size = 200
    summary = "choose one of several functions and call it with the right arguments"
    questions_sha256 = "aef168155ebd74b7ac2401198b201343bc7d16d7a3d7e0d4e6d8ee82c6969b2a"
    answers_sha256 = "244e00ce9395df948bcafc7bee64e8f9c87ef70887587d83cae45b13699f3047"


def _lines(source: Source) -> tuple[Row, ...]:
    # the leaderboard's .json files have one object on every line
    return read_rows(Source(content=source.content, name=source.name, kind=".jsonl"))


def _items(questions: Sequence[Row], answers: Sequence[Row]) -> list[Item]:
    right = {row.text("id"): row for row in answers}
    items = []
    for row in questions:
        name = row.text("id")
        if name not in right:
            raise DataError(f"{row.where}: there is no answer for {name}")
        turns, functions = row.value("question"), row.value("function")
        truth = right[name].value("ground_truth")
        if not (len(turns) == len(truth) == len(truth[0]) == 1):
            raise row.error("a single turn with a single call is needed")
        if not {f["name"] for f in functions} >= truth[0].keys():
            raise row.error(f"the answer calls {', '.join(truth[0])}, which is not defined")
        items.append(
            Item(
                id=name,
                data={"question": turns[0], "functions": functions, "answer": truth[0]},
            )
        )
    return items


def _wire_names(functions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names that the wire allows, in order: without dots, and each there once."""
    names: list[str] = []
    for function in functions:
        name = function["name"].replace(".", "_")
        while name in names:
            name += "_"
        names.append(name)
    return names


def _tool(name: str, function: Mapping[str, Any]) -> ToolDefinition:
    return ToolDefinition(
        name=name,
        description=function["description"],
        parameters=_schema(function["parameters"]),
    )


def _schema(described: Mapping[str, Any]) -> dict[str, Any]:
    """BFCL's schema as JSON Schema, with the original's note on floats."""
    schema = {key: value for key, value in described.items() if key != "optional"}
    kind = described.get("type")
    schema["type"] = _JSON_TYPES.get(kind or "", "string")
    if kind == "float":
        description = described.get("description", "")
        schema["description"] = f"{description} This is a float type value.".lstrip()
    if "properties" in described:
        schema["properties"] = {n: _schema(p) for n, p in described["properties"].items()}
    if "items" in described:
        schema["items"] = _schema(described["items"])
    return schema
