"""The engines there are. Listing them imports none."""

from __future__ import annotations

from enginehouse.core.registry import Registry

ENGINES = Registry(
    "engine",
    {
        "vllm": "enginehouse.engines.vllm.engine:VllmEngine",
        "hf": "enginehouse.engines.hf.engine:HfEngine",
        "llamacpp": "enginehouse.engines.llamacpp.engine:LlamaCppEngine",
        "sglang": "enginehouse.engines.sglang.engine:SglangEngine",
        "megatron": "enginehouse.engines.megatron:MegatronEngine",
        "openai": "enginehouse.engines.openai:OpenAIEngine",
        "anthropic": "enginehouse.engines.anthropic:AnthropicEngine",
        "openrouter": "enginehouse.engines.openrouter:OpenRouterEngine",
    },
)
