"""An engine's command line, read the way its argparse parser would, before anything is started."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from enginehouse.core.errors import ConfigurationError, FlagError, nearest
from enginehouse.provisioning.description import Flag

_NUMBER = re.compile(r"-\d")


class Argument(msgspec.Struct, frozen=True, kw_only=True):
    """One option of a command line.

    `given` is how it was written, `flag` its canonical spelling without a dotted path, and `values`
    are what follows it, after "=" or as further words.
    """

    given: str
    flag: str
    values: tuple[str, ...]


def split(arguments: str | Sequence[str]) -> tuple[str, ...]:
    """The words of `extra_args`. Raises ConfigurationError where a quote is not closed."""
    if not isinstance(arguments, str):
        return tuple(arguments)
    try:
        return tuple(shlex.split(arguments))
    except ValueError as error:
        raise ConfigurationError(
            f"extra_args cannot be split into words: {arguments}",
            why=str(error),
            fix="close the quote, or give a list of words",
        ) from error


def read(words: Sequence[str]) -> tuple[Argument, ...]:
    """The options in `words`. Raises ConfigurationError for a word that belongs to none.

    Understands --flag value, --flag=value, underscores for dashes, -short value, dotted JSON keys
    (--compilation-config.mode 3) and -O3.
    """
    return tuple(_read(words))


def _read(words: Sequence[str]) -> Iterator[Argument]:
    at = 0
    while at < len(words):
        word = words[at]
        if not _is_flag(word):
            raise ConfigurationError(
                f"extra_args has the word {word!r} where a flag should be",
                fix="write options as --flag value or --flag=value",
            )
        end = at + 1
        while end < len(words) and not _is_flag(words[end]):
            end += 1
        name, equals, value = word.partition("=")
        values = (value, *words[at + 1 : end]) if equals else tuple(words[at + 1 : end])
        if name.startswith("-O"):  # vLLM's short form: -O3, -O=3, -O 3
            values = (name[2:], *values) if name[2:] else values
            name = "--optimization-level"
        yield Argument(given=word, flag=canonical(name), values=values)
        at = end


def canonical(name: str) -> str:
    """`--max_model_len` and `--max-model-len.x` as `--max-model-len`; short flags as they are."""
    stem = name.partition(".")[0]
    return "--" + stem[2:].replace("_", "-") if stem.startswith("--") else stem


def option_of(command: Sequence[str], flag: str) -> str | None:
    """The value that a command line gives to `flag`, the last one; None if it has none."""
    words = [part for word in command for part in word.split("=", 1)]
    return next((value for name, value in reversed(list(pairwise(words))) if name == flag), None)


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.match(word)


def check(
    arguments: Sequence[Argument],
    *,
    flags: Mapping[str, Flag],
    removed: Mapping[str, str],
    engine: str,
) -> None:
    """Raise FlagError for what this install of the engine would refuse.

    `removed` says, for flags that are gone, what to use instead. Empty `flags` check nothing.
    """
    for argument in arguments if flags else ():
        flag = flags.get(argument.flag)
        if flag is None:
            name = argument.flag
            if name in removed:
                raise FlagError(f"{engine} no longer has {name}", fix=removed[name])
            close = nearest(name, flags)
            raise FlagError(
                f"{engine} has no flag {argument.given}",
                fix=f"did you mean {close}?" if close else "see the engine's --help for its flags",
            )
        if flag.takes_value and not argument.values:
            raise FlagError(
                f"{argument.given} needs a value", fix=f"write {argument.flag} VALUE in extra_args"
            )
        if not flag.takes_value and argument.values:
            raise FlagError(
                f"{argument.given} takes no value, got {' '.join(argument.values)!r}",
                fix=f"write {argument.flag} alone"
                + (
                    f", or --no-{argument.flag[2:]}" if f"--no-{argument.flag[2:]}" in flags else ""
                ),
            )
        wrong = [v for v in argument.values if flag.choices and v not in flag.choices]
        if wrong and "." not in argument.given.partition("=")[0]:
            raise FlagError(
                f"{argument.flag} cannot be {wrong[0]!r} in {engine}",
                fix=f"one of: {', '.join(flag.choices or ())}",
            )
