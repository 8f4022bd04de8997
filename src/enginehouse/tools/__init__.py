"""Tool specifications, valid calls from any model, and the loop that runs them."""

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
