"""The Python that other projects' documents show, as it stands there."""

from __future__ import annotations

# Agent Arena, "vLLM Backend Integration", section "Python Code"
AGENT_ARENA = """\
from backends import VLLMBackend, VLLMBackendConfig

# Create configuration
config = VLLMBackendConfig(
    model_path="meta-llama/Llama-2-7b-chat-hf",
    api_base="http://localhost:8000/v1",
    temperature=0.7,
    max_tokens=512,
)

# Initialize backend
backend = VLLMBackend(config)

# Check availability
if backend.is_available():
    print("vLLM server is ready!")

# Generate text
result = backend.generate("Hello, my name is")
print(result.text)

# Generate with tools
tools = [
    {
        "name": "move_to",
        "description": "Move agent to coordinates",
        "parameters": {
            "type": "object",
            "properties": {
                "target": {
                    "type": "array",
                    "items": {"type": "number"},
                    "description": "Target [x, y, z] coordinates"
                }
            },
            "required": ["target"]
        }
    }
]

result = backend.generate_with_tools(
    "I need to move to coordinates (10, 20, 5)",
    tools
)

if "tool_call" in result.metadata:
    print(f"Tool: {result.metadata['tool_call']['name']}")
    print(f"Arguments: {result.metadata['tool_call']['arguments']}")
"""

# the same document, section "Native Function Calling"; it goes on where the other one ends
AGENT_ARENA_WEATHER = """\
tools = [
    {
        "name": "get_weather",
        "description": "Get current weather",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string"}
            }
        }
    }
]

result = backend.generate_with_tools(
    "What's the weather in Paris?",
    tools
)

if "tool_call" in result.metadata:
    tool_call = result.metadata["tool_call"]
    print(f"Calling {tool_call['name']} with {tool_call['arguments']}")
"""

# RedBlackBench, "vLLM Integration for RedBlackBench", section "Programmatic Usage"
REDBLACKBENCH = """\
from redblackbench.providers import VLLMProvider
import asyncio

async def main():
    # Create provider
    provider = VLLMProvider(
        model="/workspace/models/Qwen3-14B",
        base_url="http://localhost:8000/v1",
        temperature=0.7,
    )

    # Generate response
    system_prompt = "You are a strategic game player."
    messages = [{"role": "user", "content": "What should I do?"}]
    response = await provider.generate(system_prompt, messages)
    print(response)

asyncio.run(main())
"""

_IMPORTS = {
    "from backends import": "from enginehouse.facades.agent_arena import",
    "from redblackbench.providers import": "from enginehouse.facades.redblackbench import",
}
_ADDRESS = "http://localhost:8000"


def ported(snippet: str, *, url: str) -> str:
    """The snippet with its import line changed, asking the server at `url` for the one it names."""
    for theirs, ours in _IMPORTS.items():
        snippet = snippet.replace(theirs, ours)
    return snippet.replace(_ADDRESS, url)
