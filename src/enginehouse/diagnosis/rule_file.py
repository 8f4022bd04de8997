"""Rules as data: YAML files that say what to look for, what it means, and what to do next.

A file is a list of rules, the most specific first. `when` holds regular expressions, any of which
may match; their named groups fill the placeholders of `cause` and `next`, and a name may occur in
several of them. `<NAME>` in an expression or a text stands for a fragment that the reader is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import yaml

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Details, Rule, groups

_GROUP = re.compile(r"\(\?P<(\w+)>")
_FRAGMENT = re.compile(r"<([A-Z_]+)>")


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    kind: FailureKind
    when: list[str]
    cause: str
    next: str
    details: str | None = None
    vague: bool = False
    spoken: bool = False
    late: bool = False


def read_rules(
    path: Path,
    *,
    fragments: Mapping[str, str] | None = None,
    details: Mapping[str, Details] | None = None,
) -> tuple[Rule, ...]:
    """The rules of a file. `details` are the functions that its entries name."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = msgspec.convert(
        yaml.load(path.read_text(encoding="utf-8"), Loader=loader),  # noqa: S506 - a safe loader
        list[_Entry],
    )

    def filled(text: str) -> str:
        return _FRAGMENT.sub(lambda name: (fragments or {}).get(name[1], name[0]), text)

    return tuple(
        Rule(
            entry.kind,
            _distinct_groups(filled("|".join(entry.when))),
            filled(entry.cause),
            filled(entry.next),
            (details or {})[entry.details] if entry.details else groups,
            vague=entry.vague,
            spoken=entry.spoken,
            late=entry.late,
        )
        for entry in entries
    )


def _distinct_groups(pattern: str) -> str:
    """A name that occurs again gets a number, which `groups` takes away."""
    seen: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        name = match[1]
        seen[name] = seen.get(name, 0) + 1
        return match[0] if seen[name] == 1 else f"(?P<{name}__{seen[name]}>"

    return _GROUP.sub(numbered, pattern)
