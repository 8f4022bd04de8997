"""Inspect tasks on local data, as a user writes them."""

from __future__ import annotations

import json
from pathlib import Path

CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Egypt": "Cairo",
}
_CAPITALS = '''
from typing import Literal

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.model import ChatMessageUser
from inspect_ai.scorer import exact, includes
from inspect_ai.solver import generate, solver, use_tools
from inspect_ai.tool import ToolFunction, tool

CAPITALS = {capitals}


@tool
def look_up():
    async def execute(country: str) -> str:
        """Look up the capital of a country.

        Args:
            country: The country's name.
        """
        return CAPITALS.get(country, "unknown")

    return execute


@tool
def look_up_one_of_three():
    async def execute(country: Literal["France", "Japan", "Kenya"]) -> str:
        """Look up the capital of a country.

        Args:
            country: The country's name.
        """
        return CAPITALS[country]

    return execute


@solver
def ask_again():
    async def solve(state, generate):
        state.messages.append(ChatMessageUser(content="Now in one word: " + state.input_text))
        return state

    return solve


def countries():
    return json_dataset("countries.jsonl", FieldSpec(input="question", target="capital", id="id"))


@task
def capitals(greeting: str = "") -> Task:
    return Task(
        dataset=countries(),
        solver=[
            use_tools(look_up()),
            generate(tool_calls="single"),
            ask_again(),
            use_tools(tool_choice="none"),
            generate(),
        ],
        scorer=[includes(), exact()],
        version="2-B",
    )


@task
def made_to_call() -> Task:
    choice = ToolFunction(name="look_up_one_of_three")
    return Task(
        dataset=countries(),
        solver=[
            use_tools(look_up_one_of_three(), tool_choice=choice),
            generate(tool_calls="single"),
            ask_again(),
            use_tools(tool_choice="none"),
            generate(),
        ],
        scorer=[includes()],
    )


@task
def plain() -> Task:
    return Task(dataset=countries(), solver=[generate()], scorer=[includes()])


@task
def shuffled() -> Task:
    dataset = countries()
    dataset.shuffle()
    return Task(dataset=dataset, solver=[generate()], scorer=[includes()])


@task
def conversation() -> Task:
    return Task(dataset=countries(), solver=[generate(), ask_again(), generate()], scorer=exact())


@task
def contained() -> Task:
    return Task(dataset=countries(), solver=[generate()], scorer=exact(), sandbox="docker")


@task
def on_the_hub() -> Task:
    from inspect_ai.dataset import hf_dataset

    return Task(dataset=hf_dataset("someone/something", split="test"), solver=[generate()])


@task
def in_need() -> Task:
    import package_of_nobody


@task
def broken() -> Task:
    raise RuntimeError("the task is broken")
'''


def write_inspect_tasks(folder: Path) -> Path:
    """A folder with `capitals.py`, which has several tasks, and `single.py`, which has one."""
    folder.mkdir(parents=True)
    (folder / "capitals.py").write_text(_CAPITALS.replace("{capitals}", repr(CAPITALS)))
    (folder / "single.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import Sample\n"
        "from inspect_ai.scorer import includes\n\n\n"
        "@task\n"
        "def single() -> Task:\n"
        "    return Task(dataset=[Sample(input='Say hello', target='hello')], scorer=includes())\n"
    )
    lines = [
        {"id": country.lower(), "question": f"What is the capital of {country}?", "capital": city}
        for country, city in CAPITALS.items()
    ]
    (folder / "countries.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def tool_call(country: str) -> str:
    """The text with which a model of the hermes format calls `look_up`."""
    call = json.dumps({"name": "look_up", "arguments": {"country": country}})
    return f"<tool_call>\n{call}\n</tool_call>"


def answers() -> dict[str, str]:
    """What the fake engine says: a call first, then the country's capital, but for Egypt's."""
    spoken = {
        f"Now in one word: What is the capital of {country}": city if country != "Egypt" else "Giza"
        for country, city in CAPITALS.items()
    }
    calls = {f"^What is the capital of {country}": tool_call(country) for country in CAPITALS}
    return spoken | calls
