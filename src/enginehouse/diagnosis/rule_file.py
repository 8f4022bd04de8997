"""Rules as data: YAML files that say what to look for, what it means, and what to do next.

A file is a list of rules, the most specific first. `when` holds regular expressions, any of which
may match; their named groups fill the placeholders of `cause` and `next`, and a name may occur in
several of them. `<NAME>` in an expression or a text stands for a fragment that the reader is given.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
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


class RuleFiles:
    """The rules of some files, in order; the files are read when somebody iterates over it.

    `details` are the functions that entries name, `fragments` what stands for `<NAME>`.
    """

    def __init__(
        self,
        *paths: Path,
        fragments: Mapping[str, str] | None = None,
        details: Mapping[str, Details] | None = None,
    ) -> None:
        self._paths = paths
        self._fragments = fragments or {}
        self._details = details or {}

    def __iter__(self) -> Iterator[Rule]:
        """Raises msgspec.ValidationError for a misspelt entry, KeyError for unknown details."""
        return iter(self._rules)

    @functools.cached_property
    def _rules(self) -> tuple[Rule, ...]:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        texts = [path.read_text(encoding="utf-8") for path in self._paths]
        return tuple(
            self._rule(entry)
            for text in texts
            for entry in msgspec.convert(yaml.load(text, Loader=loader), list[_Entry])  # noqa: S506
        )

    def _rule(self, entry: _Entry) -> Rule:
        def filled(text: str) -> str:
            return _FRAGMENT.sub(lambda name: self._fragments.get(name[1], name[0]), text)

        return Rule(
            entry.kind,
            _distinct_groups(filled("|".join(entry.when))),
            filled(entry.cause),
            filled(entry.next),
            self._details[entry.details] if entry.details else groups,
            vague=entry.vague,
            spoken=entry.spoken,
            late=entry.late,
        )


def _distinct_groups(pattern: str) -> str:
    """A name that occurs again gets a number, which `groups` takes away."""
    seen: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        name = match[1]
        seen[name] = seen.get(name, 0) + 1
        return match[0] if seen[name] == 1 else f"(?P<{name}__{seen[name]}>"

    return _GROUP.sub(numbered, pattern)
