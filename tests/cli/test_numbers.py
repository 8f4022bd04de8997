"""nan and inf: every option of every command that takes a number refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from enginehouse.cli.app import COMMANDS, build_app

# What else a command needs to get as far as its numbers.
WORDS = {
    "arena serve": ("m",),
    "bench": ("m",),
    "chat": ("m",),
    "check": ("m",),
    "eval": ("m", "--task", "gsm8k"),
    "gateway": ("m",),
    "parity": ("m",),
    "run-with": ("m", "--", "true"),
    "sample": ("m", "--prompts", "p.jsonl", "--out", "o.jsonl"),
    "serve": ("m",),
    "tinker serve": ("--base-model", "m"),
    "top": (),
    "watch": (".", "m", "--task", "gsm8k"),
    "weights swap": ("server", "."),
}


def options(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """The options of a command, or of those in a group, that take a number with a point."""
    for name, child in getattr(command, "commands", {}).items():
        yield from options(child, f"{path} {name}")
    for parameter in command.params:
        if parameter.type_descriptor.annotation is float:
            yield path, max(parameter.opts, key=len)


OPTIONS = [
    found
    for name in COMMANDS
    for found in options(typer.main.get_command(build_app([name])).commands[name], name)
]


def test_the_options_are_found():
    """And each command that has one is known here."""
    assert {path for path, _ in OPTIONS} == set(WORDS)
    assert ("eval", "--price-input") in OPTIONS


@pytest.mark.parametrize(("path", "option"), OPTIONS)
def test_no_option_takes_it(call, path: str, option: str):
    """Refused before anything is started, by name."""
    for value in ("nan", "inf", "-inf"):
        done = call(*path.split(), f"{option}={value}", *WORDS[path])
        assert done.code == 2, value
        assert option.removeprefix("--").replace("-", "_") in done.err.replace("-", "_")
