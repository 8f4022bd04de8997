"""Names of tasks that belong to a harness, as in "lm-eval:piqa"."""

from __future__ import annotations

from typing import NamedTuple


class HarnessTaskName(NamedTuple):
    """A harness, and a task by the name that it has there."""

    harness: str
    task: str


def harness_task_name(name: str) -> HarnessTaskName | None:
    """The harness and the task that a name in a run stands for; None for other names.

    Whether there is such a harness is not looked up.
    """
    harness, colon, task = name.partition(":")
    if not colon or not task or not harness.replace("-", "").replace("_", "").isalnum():
        return None
    return HarnessTaskName(harness=harness, task=task)
