"""docs/contributing/architecture.md against a real evaluation: who calls whom, in which order."""

from __future__ import annotations

import re
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest
from tests.support.command_line import Finished, House, sums

import enginehouse

ROOT = Path(__file__).parents[2]
SOURCE = str(Path(enginehouse.__file__).parent) + "/"


def _ranks() -> dict[str, int]:
    """Each room's height, the highest first, as import-linter's contract has it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    rooms = [re.findall(r"\w+", layer) for layer in layers]
    return {room: len(rooms) - height for height, names in enumerate(rooms) for room in names}


@dataclass
class Trace:
    """Calls between rooms: (caller, callee) by qualified name, and every function's first call."""

    between: set[tuple[str, str]] = field(default_factory=set)
    first: dict[str, int] = field(default_factory=dict)
    names: dict[object, str | None] = field(default_factory=dict)

    def name(self, frame: FrameType) -> str | None:
        """room.module.function; None outside this package."""
        code = frame.f_code
        if code not in self.names:
            file = code.co_filename
            inside = file.startswith(SOURCE) and "/" in file.removeprefix(SOURCE)
            module = file.removeprefix(SOURCE).removesuffix(".py").replace("/", ".")
            self.names[code] = f"{module}.{code.co_qualname}" if inside else None
        return self.names[code]

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """What sys.setprofile calls."""
        if event != "call" or (callee := self.name(frame)) is None:
            return
        if callee.endswith(("<module>", "__post_init__")):
            return  # an import; a record that msgspec decodes
        self.first.setdefault(callee, len(self.first))
        caller, back = None, frame.f_back
        while back is not None and caller is None and "/pydantic/" not in back.f_code.co_filename:
            # a validator is called by pydantic
            name = self.name(back)
            caller, back = None if name in TRANSPARENT else name, back.f_back
        if caller is not None and caller.partition(".")[0] != callee.partition(".")[0]:
            self.between.add((caller, callee))


@contextmanager
def traced() -> Iterator[Trace]:
    """Trace this thread, and those that are started meanwhile."""
    trace = Trace()
    before = sys.getprofile()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        yield trace
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


@pytest.fixture
def evaluation(house: House, call: Callable[..., Finished]) -> Trace:
    """`enginehouse eval` of ten items on the fake engine, in this process."""
    items, canned = sums(right=8, wrong=2)
    words = ("--task", str(house.task(items)), "--env", house.answers(canned), "--json")
    with traced() as trace:
        finished = call("eval", str(house.model()), *words)
    assert finished.code == 0, finished.err
    assert finished.report["tasks"][0]["headline"]["value"] == 0.8
    return trace


# The exceptions, which docs/contributing/architecture.md states:
SUBSCRIPTIONS = {
    "cli.console.Console.note": "progress in words: Context.notify",
}
GIVEN = {
    "engines.vllm.wire.VllmLoadSignal.parse": "an engine's LoadSignal, which its clients are given",
}
TRANSPARENT = {  # they count as whoever called them, as asyncio's tasks do
    "runtime.workers.run_workers": "bounded workers, each running what its caller gave it",
    "runtime.workers.run_workers.<locals>.worker": "one of them",
}


@pytest.mark.slow
def test_calls_between_rooms_go_down(evaluation: Trace):
    """Nothing calls a room above its own, but for the exceptions that are listed here."""
    ranks = _ranks()
    rooms = {name.partition(".")[0] for call in evaluation.between for name in call}
    assert {"cli", "commands", "deployment", "evaluation", "client", "servers", "store"} <= rooms
    up = [
        f"{caller} -> {callee}"
        for caller, callee in sorted(evaluation.between)
        if ranks[caller.partition(".")[0]] < ranks[callee.partition(".")[0]]
        and callee not in SUBSCRIPTIONS | GIVEN
    ]
    assert "\n".join(up) == ""


def _steps() -> list[tuple[str, str]]:
    """For each step of the way of a prompt, its functions, and their module or folder."""
    text = (ROOT / "docs/contributing/architecture.md").read_text()
    section = text.partition("## From a plan to an answer")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \d+ \| (.+?) \| `(.+?)` \|", section, re.MULTILINE)
    return [(names, file.removesuffix(".py").rstrip("/").replace("/", ".")) for names, file in rows]


@pytest.mark.slow
def test_the_way_of_a_prompt_is_that_of_the_document(evaluation: Trace):
    """Every named step is taken, in the document's order, and there are at most 15."""
    steps = _steps()
    assert 10 <= len(steps) <= 15
    moments = []
    for names, module in steps:
        for name in re.findall(r"`([\w.]+)`", names):
            pattern = re.compile(rf"{re.escape(module)}\.(\w+\.)?{re.escape(name)}")
            calls = [at for called, at in evaluation.first.items() if pattern.fullmatch(called)]
            assert calls, f"{module}.{name} is not called"
            moments.append((min(calls), name))
    assert len(moments) >= len(steps)
    assert moments == sorted(moments)
