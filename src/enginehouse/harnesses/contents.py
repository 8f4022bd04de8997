"""What a harness's groups consist of, down to their tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse.harnesses.base import HarnessTask


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The names that a task or group asks, itself included.

    `changed` are those of them to which a group gives settings of its own.
    """

    names: frozenset[str]
    changed: frozenset[str]


def contents_of(name: str, known: Mapping[str, HarnessTask]) -> Contents:
    """What `name` asks. Names that are not known have no parts."""
    plain: set[str] = set()
    changed: set[str] = set()
    waiting = [(name, False)]
    while waiting:
        one, is_changed = waiting.pop()
        names = changed if is_changed else plain
        if one in names:
            continue
        names.add(one)
        if (task := known.get(one)) is not None:
            waiting += [(part, is_changed) for part in task.parts]
            waiting += [(part, True) for part in task.changed_parts]
    return Contents(names=frozenset(plain | changed), changed=frozenset(changed))
