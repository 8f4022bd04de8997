"""The harnesses there are. Listing them imports none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginehouse.core.registry import Registry

if TYPE_CHECKING:
    from enginehouse.harnesses.base import Harness


def problem_of(name: str, harness_class: Any) -> str | None:
    """What is wrong with a plug-in's class; None if nothing is."""
    harness = harness_class()
    missing = [m for m in ("installation", "check", "list_tasks", "run") if not hasattr(harness, m)]
    if missing:
        return f"lacks: {', '.join(missing)}"
    if harness.name != name:
        return f"is called {harness.name} in its class: the entry point needs the same name"
    return None


HARNESSES = Registry(
    "harness",
    {
        "inspect": "enginehouse.harnesses.inspect.harness:Inspect",
        "lm-eval": "enginehouse.harnesses.lm_eval.harness:LmEval",
    },
    group="enginehouse.harnesses",
    problem=problem_of,
)


def load_harness(name: str) -> Harness:
    """The harness called `name`.

    Raises UnknownNameError, and ConfigurationError for a plug-in that is broken.
    """
    harness: Harness = HARNESSES.load(name)()
    return harness
