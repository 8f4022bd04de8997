"""Names of tasks that belong to a harness, as in "lm-eval:piqa"."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_PREFIX: Final = re.compile(r"([a-z][a-z0-9_-]*):(?!//)(?=.)")


class HarnessTaskName(msgspec.Struct, frozen=True, kw_only=True):
    """A harness, and a task by the name that it has there."""

    harness: str
    task: str

    def __str__(self) -> str:
        """The name as users write it."""
        return f"{self.harness}:{self.task}"


def harness_task_name(name: str) -> HarnessTaskName | None:
    """The harness and the task that a name in a run stands for; None for other names.

    Whether there is such a harness is not looked up.
    """
    prefix = _PREFIX.match(name)
    if prefix is None:
        return None
    return HarnessTaskName(harness=prefix[1], task=name[prefix.end() :])
