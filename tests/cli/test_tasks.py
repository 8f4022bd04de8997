"""`enginehouse tasks`."""

from __future__ import annotations

import pytest

from enginehouse.cli.console import Console
from enginehouse.cli.tasks import list_harness_tasks
from enginehouse.core.errors import ConfigurationError
from enginehouse.harnesses.base import HarnessTask
from enginehouse.tasks.registry import TASKS


def test_every_task_is_listed(call):
    """Name, size, licence, what "correct" means, and what the task needs."""
    listed = call("tasks").out
    assert all(f"{name}  " in listed for name in TASKS.names())
    (gsm8k,) = (info for info in call("tasks", "--json").report if info["name"] == "gsm8k")
    for fact in (f"{gsm8k['size']:,} items", gsm8k["licence"], gsm8k["headline"]):
        assert fact in " ".join(listed.split())


@pytest.mark.parametrize(
    ("word", "fix"), [("pika", "did you mean lm-eval:piqa?"), ("zzz", "fewer")]
)
def test_words_that_no_task_of_a_harness_has(
    monkeypatch: pytest.MonkeyPatch, word: str, fix: str
) -> None:
    """The nearest name is given, and not the thousands that there are."""

    async def listed(*_: object, **__: object) -> list[HarnessTask]:
        return [HarnessTask(name=f"lm-eval:{name}") for name in ("piqa", *map(str, range(9000)))]

    monkeypatch.setattr("enginehouse.commands.harness_tasks.list_tasks_of", listed)
    with pytest.raises(ConfigurationError) as refused:
        list_harness_tasks(
            [word], harness="lm-eval", include_path=None, version=None, console=Console(json=False)
        )
    assert fix in (refused.value.fix or "")
    assert len(str(refused.value)) < 300
