"""`enginehouse tasks`."""

from __future__ import annotations

from enginehouse.tasks.registry import TASKS


def test_every_task_is_listed(call):
    """Name, size, licence, what "correct" means, and what the task needs."""
    listed = call("tasks").out
    assert all(f"{name}  " in listed for name in TASKS.names())
    (gsm8k,) = (info for info in call("tasks", "--json").report if info["name"] == "gsm8k")
    for fact in (f"{gsm8k['size']:,} items", gsm8k["licence"], gsm8k["headline"]):
        assert fact in " ".join(listed.split())
