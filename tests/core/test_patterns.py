"""No regular expression of the package takes more than linear time, whatever it is given."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]

import pytest

import enginehouse
from enginehouse.testing.growth import assert_linear

SOURCE = Path(enginehouse.__file__).parent
LONGEST = 20_000
# Modules whose patterns never meet a server's or model's text, and what they read instead.
NOT_FROM_OUTSIDE = {
    "testing": "what this project's own tests send",
    "core.model_reference": "names of models, as the user gives them",
    "watch.checkpoints": "names of files",
    "provisioning.versions": "names of environments' folders, and of packages",
    "weights.peft_folder": "names of tensors and modules",
    "tasks.hellaswag": "the benchmark's data",
    "tasks.data": "the user's options",
}
# Rules that explain a log are tested with the log reader.
DIAGNOSIS = re.compile(r"diagnosis\b|engines\..*(?:diagnos|failures|log)")


def _is_covered(module: str) -> bool:
    """Whether a module (without the package's name) may meet text from outside."""
    return not DIAGNOSIS.match(module) and not any(
        module == name or module.startswith(f"{name}.") for name in NOT_FROM_OUTSIDE
    )


def _modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(enginehouse.__path__, "enginehouse."):
        name = module.name.removeprefix("enginehouse.")
        # payloads are programs, and read below
        if _is_covered(name) and not name.startswith(("payloads", "__main__")):
            yield module.name


def _compiled(value: object, depth: int = 0) -> Iterator[re.Pattern[str]]:
    """The patterns in a module's variable, also within tuples and the like."""
    if isinstance(value, re.Pattern):
        yield value
    elif depth < 4 and isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _compiled(part, depth + 1)
    elif depth < 4 and isinstance(value, dict):
        for part in value.values():
            yield from _compiled(part, depth + 1)


def _written(file: Path) -> Iterator[re.Pattern[str]]:
    """The patterns that a file's functions give to re, where they are constants."""
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            flags = 0
            for name in ast.walk(node):
                if isinstance(name, ast.Attribute) and name.attr.isupper():
                    flags |= getattr(re, name.attr)
            yield re.compile(node.args[0].value, flags)


def _patterns() -> dict[str, re.Pattern[str]]:
    found: dict[str, re.Pattern[str]] = {}
    for name in _modules():
        module = importlib.import_module(name)
        for value in vars(module).values():
            for pattern in _compiled(value):
                if isinstance(pattern.pattern, str):
                    found.setdefault(f"{pattern.pattern}/{pattern.flags}", pattern)
    for file in SOURCE.rglob("*.py"):
        if _is_covered(".".join(file.relative_to(SOURCE).with_suffix("").parts)):
            for pattern in _written(file):
                found.setdefault(f"{pattern.pattern}/{pattern.flags}", pattern)
    return found


def _samples(parsed, most: int = 12) -> list[str]:
    """Texts that such a pattern matches, more or less: every branch of it once."""
    texts = [""]
    for code, value in parsed:
        parts = _part(code, value)
        longest = max(texts, key=len)
        texts = [text + parts[0] for text in texts] + [longest + part for part in parts[1:]]
        texts = texts[:most]
    return texts


def _part(code, value) -> list[str]:
    texts = [""]
    if code in (codes.LITERAL, codes.NOT_LITERAL):
        texts = [chr(value) if code is codes.LITERAL else "~"]
    elif code is codes.ANY:
        texts = ["a", " "]
    elif code is codes.IN:
        texts = _of_set(value)
    elif code is codes.BRANCH:
        texts = [text for branch in value[1] for text in _samples(branch)]
    elif code in (codes.SUBPATTERN, codes.ATOMIC_GROUP):
        texts = _samples(value[3] if code is codes.SUBPATTERN else value)
    elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        low, _, inner = value
        texts = [text * max(low, 1) for text in _samples(inner)]
    return texts


def _of_set(values) -> list[str]:
    negated = any(code is codes.NEGATE for code, _ in values)
    if negated:
        return ["~"]
    found = []
    for code, value in values:
        if code is codes.LITERAL:
            found.append(chr(value))
        elif code is codes.RANGE:
            found.append(chr(value[0]))
        elif code is codes.CATEGORY:
            found.append(
                {
                    codes.CATEGORY_DIGIT: "1",
                    codes.CATEGORY_SPACE: " ",
                    codes.CATEGORY_WORD: "a",
                }.get(value, "~")
            )
    return [*found[:2], *found[-1:]] or ["~"]


def _attacks(pattern: re.Pattern[str]) -> list[str]:
    """What is repeated: the beginnings of what matches, and each of its characters."""
    samples = _samples(parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG))
    pieces: dict[str, None] = {}
    for sample in samples:
        for end in range(1, len(sample) + 1):
            pieces[sample[:end]] = None
        for character in sample:
            pieces[character] = None
    return list(pieces)


PATTERNS = _patterns()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_no_pattern_is_quadratic(name):
    r"""Fed with repetitions of the beginnings and the characters of what it matches.

    Rewrite one that fails: bound its repetitions, make them possessive, or keep it from beginning
    in the middle of what it has already read, as in (?<![a-z])[a-z]+. `\A` is for those that only
    ever match from the start.
    """
    pattern = PATTERNS[name]

    def look(text: str) -> None:
        pattern.match(text)
        pattern.fullmatch(text)
        for _ in pattern.finditer(text):
            pass

    for piece in _attacks(pattern):
        assert_linear(look, lambda length, p=piece: p * (length // len(p)), longest=LONGEST)
