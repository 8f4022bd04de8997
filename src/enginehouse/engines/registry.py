"""The engines there are. Listing them imports none."""

from __future__ import annotations

from enginehouse.core.registry import Registry

ENGINES = Registry(
    "engine",
    {
        "vllm": "enginehouse.engines.vllm:VllmEngine",
        "hf": "enginehouse.engines.hf:HfEngine",
        "llamacpp": "enginehouse.engines.llamacpp:LlamaCppEngine",
        "sglang": "enginehouse.engines.sglang:SglangEngine",
        "megatron": "enginehouse.engines.megatron:MegatronEngine",
        "openai": "enginehouse.engines.openai:OpenAIEngine",
        "anthropic": "enginehouse.engines.anthropic:AnthropicEngine",
        "openrouter": "enginehouse.engines.openrouter:OpenRouterEngine",
    },
)
