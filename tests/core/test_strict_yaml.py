from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.strict_yaml import LARGEST_FILE, load_yaml, parse_mapping


def _bomb(merge: str, levels: int = 30) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, levels):
        before = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} " + merge.format(before=before))
    return "\n".join(lines)


def test_it_is_yaml():
    """Mappings, lists, numbers, aliases and merge keys are what YAML says."""
    text = """
    common: &common {temperature: 0, limit: 10}
    tasks: [gsm8k, {name: mine.yaml, limit: 5}]
    server: {<<: *common, limit: 20}
    again: *common
    """
    assert load_yaml(text) == {
        "common": {"temperature": 0, "limit": 10},
        "tasks": ["gsm8k", {"name": "mine.yaml", "limit": 5}],
        "server": {"temperature": 0, "limit": 20},
        "again": {"temperature": 0, "limit": 10},
    }
    assert load_yaml("") is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("limit: 5\nseed: 1\nlimit: 50\n", 3),
        ("server:\n  dtype: auto\n  dtype: float32\n", 3),
        ("tasks:\n- {name: a, name: b}\n", 2),
        ('limit: 5\n"limit": 6\n', 2),
        ("a: {b: &x {k: 1, k: 2}}\nc: {<<: *x}\n", 1),
    ],
)
def test_a_key_that_stands_twice(text: str, line: int):
    """The second would silently win: it is an error that names key and line."""
    with pytest.raises(yaml.MarkedYAMLError, match="occurs twice") as caught:
        load_yaml(text)
    assert caught.value.problem_mark is not None
    assert caught.value.problem_mark.line + 1 == line


@pytest.mark.parametrize("merge", ["[{before}]", "{{x: {{y: [{before}]}}}}", "{{<<: [{before}]}}"])
def test_aliases_that_multiply(merge: str):
    """Nine to the thirtieth values from thirty lines: refused at once, before they are made."""
    began = time.monotonic()
    with pytest.raises(yaml.YAMLError, match="too many"):
        load_yaml(_bomb(merge))
    assert time.monotonic() - began < 5
    assert load_yaml(_bomb(merge, levels=3))


@pytest.mark.parametrize("text", ["&a [*a]", "&a {b: {c: *a}}", "&a [[x, *a]]"])
def test_an_alias_in_itself(text: str):
    """It has no end."""
    with pytest.raises(yaml.YAMLError, match="contains itself"):
        load_yaml(text)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[" * 5_000, "{a: " * 5_000, "- " * 5_000 + "x"])
def test_deep_nesting(text: str):
    """An error of the file, not of the interpreter."""
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


@pytest.mark.parametrize("text", ["when: 2020-13-45", "seed: " + "1" * 5_000, "when: 2020-02-30"])
def test_values_that_python_refuses(text: str):
    """PyYAML raises ValueError for them."""
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        load_yaml(text)
    assert caught.value.problem_mark is not None


def test_a_large_file_is_refused_unread():
    """Reading it would take minutes."""
    content = b"key: value\n" * (LARGEST_FILE // 10)
    with pytest.raises(ConfigurationError, match="too large"):
        parse_mapping(content, path=Path("a.yaml"))
