"""The tool calls that a fake makes: the shortest instances of the tools' schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from enginehouse.testing.fake_engine.instances import instance


def wanted_calls(body: Any, tools: Sequence[Any], user_text: str) -> list[dict[str, Any]]:
    """OpenAI's tool calls: the tool that was named, else the first, twice for a user's "both"."""
    choice = body.get("tool_choice", "auto")
    if not tools or choice == "none" or body["messages"][-1]["role"] == "tool":
        return []
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    functions = [tool["function"] for tool in tools]
    chosen = next((f for f in functions if f["name"] == name), functions[0])
    arguments = instance(chosen["parameters"], rng=random.Random(0))
    return [
        {
            "id": f"call_{place}",
            "type": "function",
            "function": {"name": chosen["name"], "arguments": json.dumps(arguments)},
        }
        for place in range(2 if "both" in user_text else 1)
    ]
