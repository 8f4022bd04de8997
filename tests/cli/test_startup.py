"""What is refused, helped with or completed imports little; counted in modules, not in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from tests.support.command_line import SOURCE

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
MOST_MODULES = 350  # 300 to 330 when this was written, with pydantic's and typer's 200
LEAST_MODULES = 100  # fewer, and the count counts nothing
PROGRAM = """
import contextlib, io, json, sys
from enginehouse.__main__ import main
said = io.StringIO()
code = 0
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    try:
        main()
    except SystemExit as ended:
        code = ended.code
print(json.dumps({"code": code, "said": said.getvalue(), "modules": sorted(sys.modules)}))
"""
WITH_LIMITS = {  # an option that pydantic refuses
    "eval": ["x", "--task", "gsm8k", "--limit", "0"],
    "watch": ["out", "--task", "gsm8k", "--samples", "0"],
    "serve": ["x", "--max-num-seqs", "0"],
    "bench": ["x", "--requests", "0"],
    "check": ["x", "--users", "0"],
    "parity": ["x", "--threshold", "-1"],
    "chat": ["x", "--top-p", "2"],
    "sample": ["x", "--prompts", "p", "--out", "o", "--n", "0"],
}


def start(words: Sequence[str], **env: str) -> tuple[int, str]:
    """Exit code and output of a command line that imports no more than it may."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    modules = result["modules"]
    assert sorted(HEAVY & set(modules)) == []
    assert LEAST_MODULES < len(modules) <= MOST_MODULES
    return result["code"], result["said"]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option(name: str):
    """Of every command, groups included."""
    code, said = start([name, "--no-such-option"])
    assert (code, "No such option" in said) == (2, True)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(name: str):
    """Lists its options."""
    code, said = start([name, "--help"])
    assert (code, "--help" in said) == (0, True)


@pytest.mark.parametrize("name", WITH_LIMITS)
def test_a_value_out_of_bounds(name: str):
    """Is refused by name."""
    code, said = start([name, *WITH_LIMITS[name]])
    assert (code, "error: " in said) == (2, True)


def test_every_command_with_a_configuration_has_a_case():
    """So that a new one is not forgotten."""
    with_config = {name for name in COMMANDS if "--config" in start([name, "--help"])[1]}
    assert with_config == set(WITH_LIMITS)


@pytest.mark.parametrize(
    "words", [(), ("--help",), ("--version",), ("nonsense",), ("eval", "--swap-space", "4")]
)
def test_without_a_command(words: tuple[str, ...]):
    """The list, the version, an unknown name, a flag that the engine no longer has."""
    assert start(words)[0] in (0, 2)


def test_completion():
    """All commands are imported for it, and still little."""
    env = {"_ENGINEHOUSE_COMPLETE": "complete_bash", "COMP_WORDS": "enginehouse eval --max-mod"}
    code, said = start([], **env, COMP_CWORD="2")
    assert (code, "--max-model-len" in said) == (0, True)
