"""What is refused, helped with or completed imports little; counted in modules, not in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from subprocess import PIPE

import pytest
from tests.support.command_line import SOURCE, House, sums

from enginehouse.cli.app import COMMANDS

# Slow to import, and of no use before anything is done.
HEAVY = {
    *("aiohttp", "asyncio", "filelock", "huggingface_hub", "hydra", "jinja2", "jsonschema"),
    *(
        "msgspec",
        "numpy",
        "omegaconf",
        "orjson",
        "psutil",
        "rich",
        "safetensors",
        "scipy",
        "uvloop",
    ),
    *("enginehouse.evaluation", "enginehouse.client.transport", "enginehouse.servers"),
}
# What an evaluation of sums does without: the needs of other tasks and of other commands.
OF_OTHERS = {"jsonschema", "scipy", "uvicorn", "enginehouse.gateway.service", "enginehouse.arena"}
MOST_MODULES = 370  # 300 to 350 when this was written, with pydantic's and typer's 200
LEAST_MODULES = 100  # fewer, and the count counts nothing
# Every command line runs in a child of one Python that has imported what all of them need anyway.
PROGRAM = """
import contextlib, io, json, os, sys
import pydantic, typer
for line in sys.stdin:
    words, env = json.loads(line)
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        with open(reading) as file:
            print(file.read(), flush=True)
        os.waitpid(pid, 0)
        continue
    os.environ.update(env)
    sys.argv[1:] = words
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            from enginehouse.__main__ import main
            main()
        except SystemExit as ended:
            code = ended.code
    result = {"code": code, "said": said.getvalue(), "modules": sorted(sys.modules)}
    with open(writing, "w") as file:
        file.write(json.dumps(result))
    os._exit(0)
"""
WITH_LIMITS = {  # an option that pydantic refuses
    "eval": ["x", "--task", "gsm8k", "--limit", "0"],
    "watch": ["out", "--task", "gsm8k", "--samples", "0"],
    "serve": ["x", "--max-num-seqs", "0"],
    "gateway": ["x", "--max-in-flight", "0"],
    "bench": ["x", "--requests", "0"],
    "check": ["x", "--users", "0"],
    "parity": ["x", "--threshold", "-1"],
    "chat": ["x", "--top-p", "2"],
    "run-with": ["x", "--max-restarts", "-1", "--", "true"],
    "sample": ["x", "--prompts", "p", "--out", "o", "--n", "0"],
}


Start = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Exit code and output of a command line that imports no more than it may."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}
    argv = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(argv, env=env, stdin=PIPE, stdout=PIPE, text=True) as python:

        def run(
            words: Sequence[str],
            *,
            light: bool = True,
            without: AbstractSet[str] = HEAVY,
            **env: str,
        ) -> tuple[int, str]:
            assert python.stdin is not None
            assert python.stdout is not None
            python.stdin.write(json.dumps([words, env]) + "\n")
            python.stdin.flush()
            result = json.loads(python.stdout.readline())
            modules = result["modules"]
            assert sorted(without & set(modules)) == []
            if light:
                assert LEAST_MODULES < len(modules) <= MOST_MODULES
            return result["code"], result["said"]

        yield run


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_and_the_help(start: Start, name: str):
    """Of every command, groups included."""
    # an engine may have had it
    code, said = start([name, "--no-such-option"], light=False, without=set())
    assert (code, "--no-such-option" in said) == (2, True)
    code, said = start([name, "--help"])
    assert (code, "--help" in said) == (0, True)
    assert ("--config" in said) == (name in WITH_LIMITS), "a command without a case below"


@pytest.mark.parametrize("name", WITH_LIMITS)
def test_a_value_out_of_bounds(start: Start, name: str):
    """Is refused by name."""
    code, said = start([name, *WITH_LIMITS[name]])
    assert (code, "error: " in said) == (2, True)


@pytest.mark.parametrize("words", [(), ("--help",), ("--version",), ("nonsense",)])
def test_without_a_command(start: Start, words: tuple[str, ...]):
    """The list, the version, an unknown name."""
    assert start(words)[0] in (0, 2)


def test_a_flag_that_the_engine_no_longer_has(start: Start):
    """The engine is loaded to say what to use instead."""
    code, said = start(("eval", "--swap-space", "4"), light=False, without=set())
    assert (code, "--swap-space" in said) == (2, True)


def test_an_evaluation(start: Start, house: House):
    """A whole one, with numbers to score, without what other tasks and commands need."""
    house.model()
    items, canned = sums(right=2, wrong=1)
    words = ["eval", str(house.work / "tiny"), "--task", str(house.task(items))]
    words += ["--env", house.answers(canned), "--json", "--quiet"]
    code, said = start(words, light=False, without=OF_OTHERS, **house.env)
    assert code == 0, said
    assert json.loads(said)["tasks"][0]["outcomes"]["correct"] == 2


def test_completion(start: Start):
    """All commands are imported for it, and still little."""
    env = {"_ENGINEHOUSE_COMPLETE": "complete_bash", "COMP_WORDS": "enginehouse eval --max-mod"}
    code, said = start([], **env, COMP_CWORD="2")
    assert (code, "--max-model-len" in said) == (0, True)
