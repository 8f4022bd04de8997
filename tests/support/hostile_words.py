"""Gives the text options of commands hostile values, one call after another, in this process.

Usage: hostile_words.py COMMANDS BASES VALUES, each in JSON: the commands' names, a mapping of
"COMMAND [SUBCOMMAND]" to the words that make a call of it complete, and what each option is given;
without values every command is called once. Prints the result of every call, a JSON object a line.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from enginehouse.__main__ import main
from enginehouse.cli.app import build_app


def commands(name: str) -> Iterator[tuple[list[str], Any]]:
    """A command, or every one of a group and of the groups in it."""
    yield from _commands([name], typer.main.get_command(build_app([name])).commands[name])


def _commands(words: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, sub in inner.items():
        yield from _commands([*words, name], sub)


def calls(words: list[str], command: Any, base: list[str], values: list[str]) -> Iterator[Any]:
    """Every call: (option, whether it is typed as a path, value, words)."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    end = base.index("--") if "--" in base else len(base)
    base, program = base[:end], base[end:]
    for parameter in command.params:
        kind = parameter.type_descriptor.annotation
        if kind not in (str, Path, list[str]):
            continue
        for value in values if kind is Path else values[::4]:
            if parameter.param_type_name == "argument":
                place = arguments.index(parameter)
                options = _options(base)
                given = base[: len(base) - len(options)]
                before = given[:place] + ["tiny"] * (place - len(given))
                rest = [*before, value, *given[place + 1 :], *options]
            else:
                rest = [*base, f"{parameter.opts[0]}={value}"]
            yield parameter.name, kind is Path, value, [*words, *rest, *program]


def _options(base: list[str]) -> list[str]:
    """`base` from its first option on; options stand behind arguments in it."""
    first = next((i for i, word in enumerate(base) if word.startswith("-")), len(base))
    return base[first:]


def call(words: list[str]) -> tuple[object, str]:
    """The exit code and what was said."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    sys.argv = ["enginehouse", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue() + err.getvalue()


if __name__ == "__main__":
    names, bases, values = (json.loads(word) for word in sys.argv[1:4])
    for words, command in (pair for name in names for pair in commands(name)):
        base = bases.get(" ".join(words), [])
        once = [(None, False, None, [*words, *base])]
        for option, is_path, value, argv in calls(words, command, base, values) if values else once:
            code, said = call(argv)
            result = {"option": option, "is_path": is_path, "value": value, "words": argv}
            sys.stdout.write(json.dumps(result | {"code": code, "said": said}) + "\n")
            sys.stdout.flush()
