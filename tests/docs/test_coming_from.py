"""docs/coming-from.md: what it promises to be here is here."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from enginehouse.cli.app import COMMANDS
from enginehouse.core import errors
from enginehouse.engines.registry import ENGINES

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/coming-from.md").read_text()
HERE = [line.split(" | ")[1] for line in DOCUMENT.splitlines() if line.startswith("| ")]
PLANNED = {
    "the game",
    "adapters and weights",
    "training service",
    "container and cluster executors",
    "evaluation within training",
}


def named(pattern: str) -> set[str]:
    """What the second columns name."""
    return {found for cell in HERE for found in re.findall(pattern, cell)}


def test_every_row_says_something() -> None:
    """Each table has two columns, and none of the second ones is empty."""
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| ")]
    assert len(rows) > 100
    for row in rows:
        assert len(row.strip("| ").split(" | ")) == 2, row


def test_its_commands_are_commands() -> None:
    """`enginehouse X` is a command."""
    commands = named(r"`enginehouse ([a-z]+)")
    assert len(commands) > 10
    assert commands <= set(COMMANDS)


def test_its_engines_are_engines() -> None:
    """`--engine X` is an engine."""
    assert named(r"`--engine ([a-z]+)") <= set(ENGINES.names())


def test_its_files_are_there() -> None:
    """Examples that are to be run exist."""
    files = named(r"(examples/[\w./-]+)")
    assert files
    assert all((ROOT / file).exists() for file in files)


@pytest.mark.parametrize("name", sorted(named(r"`(enginehouse\.[a-z_.]+)`")))
def test_its_python_is_there(name: str) -> None:
    """A dotted name is a module or something of one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        assert hasattr(importlib.import_module(module), attribute)


def test_its_errors_are_errors() -> None:
    """Classes that it names are in the tree."""
    assert all(hasattr(errors, name) for name in named(r"\b([A-Z][A-Za-z]+Error)\b"))


def test_what_is_planned_is_marked_alike() -> None:
    """What follows "planned:" is one of the planned parts."""
    for part in named(r"planned: ([a-z ]+[a-z])"):
        assert any(part.startswith(known) for known in PLANNED), part
