"""What groups consist of."""

from __future__ import annotations

from typing import Any

from enginehouse.harnesses.base import HarnessTask
from enginehouse.harnesses.contents import contents_of


def group(name: str, *parts: str, **more: Any) -> tuple[str, HarnessTask]:
    """A group by its name."""
    return name, HarnessTask(name=name, kind="group", parts=parts, **more)


KNOWN = dict(
    [
        group("all", "half", "other"),
        group("half", "tag"),
        group("tag", "one", "two"),
        group("other", "two", changed_parts=("half",)),
        group("turning", "turning", "one"),
    ]
)


def test_groups_in_groups_down_to_tasks():
    """Tasks that are not listed, such as a user's own file, are what they are."""
    half = contents_of("half", KNOWN)
    assert half.names == {"half", "tag", "one", "two"}
    assert half.changed == set()
    assert contents_of("one", KNOWN).names == {"one"}


def test_all_below_a_changed_part_is_changed():
    """Even if the same task is also asked as it is."""
    everything = contents_of("all", KNOWN)
    assert everything.names == {"all", "half", "other", "tag", "one", "two"}
    assert everything.changed == {"half", "tag", "one", "two"}


def test_a_group_that_holds_itself_ends():
    """A mistake in a user's own file."""
    assert contents_of("turning", KNOWN).names == {"turning", "one"}
