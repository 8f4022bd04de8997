"""YAML without duplicate keys and without aliases that multiply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from enginehouse.core.errors import ConfigurationError

_DEEPEST = 64  # mappings and lists within one another
_MOST_VALUES = 100_000  # with aliases written out
LARGEST_FILE = 2_000_000
"""Bytes; PyYAML would read a larger file for minutes."""


def parse_mapping(content: bytes, *, path: Path) -> dict[str, Any]:
    """The mapping in a YAML file's content. Raises ConfigurationError naming file and line."""
    if len(content) > LARGEST_FILE:
        raise ConfigurationError(
            f"{path} is too large",
            why=f"a configuration has at most {LARGEST_FILE:,} bytes",
            fix="check that it is the right file",
        )
    try:
        value = load_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path} is not UTF-8 text", why=str(error), fix="save it as UTF-8"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigurationError(f"{path}{where}: not valid YAML", why=problem) from error
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"{path} must be a mapping of keys to values",
            why="it is empty" if value is None else f"it is a {type(value).__name__}",
            fix="write one `key: value` per line; docs/reference.md lists the keys",
        )
    return value


def load_yaml(text: str) -> Any:
    """The value of a YAML document; None for an empty one.

    Raises yaml.YAMLError, mostly with a `problem` and a `problem_mark`, for invalid YAML, a
    duplicate key, an alias that contains itself, and aliases that multiply.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _refusal("nested too deeply", self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        # Before anything is constructed: merge keys (<<) copy their alias's values.
        if _written_out(node, {}) > _MOST_VALUES:
            raise _refusal("its aliases expand to too many values", node.start_mark)
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 (PyYAML's signature)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _refusal(f"the key {key.value!r} occurs twice", key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a date that does not exist, a number of 5,000 digits
            raise _refusal(str(error), node.start_mark) from error


def _written_out(node: yaml.Node, known: dict[int, int | None]) -> int:
    """The number of values in a node, counting each use of an alias."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    size = known.get(id(node), 0)
    if size is None:
        raise _refusal("an alias contains itself", node.start_mark)
    if not size:
        known[id(node)] = None
        is_mapping = isinstance(node, yaml.MappingNode)
        parts = (part for pair in node.value for part in pair) if is_mapping else iter(node.value)
        size = known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return size


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
