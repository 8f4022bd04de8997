"""Markup of calls that a server's parser should have removed from the text."""

from __future__ import annotations

import re

# Opening marks of the formats that vLLM 0.32's tool parsers read.
_MARKS = re.compile(
    r"<tool_call>|<tool_calls>|<\|tool_call\|?>|<\|tool_calls_section_begin\|>|<\|tool_call_begin\|>"
    r"|<\uff5ctool\u2581calls?\u2581begin\uff5c>|\[TOOL_CALLS\]|<\|python_tag\|>|<function=|<function_call>"
    r"|<start_function_call>|<\|action_start\|>|<TOOLCALL>|<minimax:tool_call>|<seed:tool_call>"
    r"|<longcat_tool_call>|<invoke name=|<\|tool_call_start\|>|functools\["
)


def leftover_markup(text: str) -> str | None:
    """The first mark of a tool call in a text, None if there is none."""
    mark = _MARKS.search(text)
    return mark[0] if mark else None
