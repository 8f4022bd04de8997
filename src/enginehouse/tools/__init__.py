"""Tool specifications, valid calls from any model, and the loop that runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginehouse.core.tool_steps import Step
    from enginehouse.tools.agent import AgentLimits, AgentOutcome, AgentResult, run_agent
    from enginehouse.tools.calling import call_tools
    from enginehouse.tools.ladder import Ladder
    from enginehouse.tools.results import Attempt, CallOutcome, CheckedCall, ToolResult
    from enginehouse.tools.specification import ToolSpec

__all__ = [
    "AgentLimits",
    "AgentOutcome",
    "AgentResult",
    "Attempt",
    "CallOutcome",
    "CheckedCall",
    "Ladder",
    "Step",
    "ToolResult",
    "ToolSpec",
    "call_tools",
    "run_agent",
]

# A name is imported when it is used: tasks need the results of calls, and not what checks them.
_MODULES = {
    "AgentLimits": "tools.agent",
    "AgentOutcome": "tools.agent",
    "AgentResult": "tools.agent",
    "Attempt": "tools.results",
    "CallOutcome": "tools.results",
    "CheckedCall": "tools.results",
    "Ladder": "tools.ladder",
    "Step": "core.tool_steps",
    "ToolResult": "tools.results",
    "ToolSpec": "tools.specification",
    "call_tools": "tools.calling",
    "run_agent": "tools.agent",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(f"enginehouse.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
