"""The engines there are. Listing them imports none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.registry import Registry

if TYPE_CHECKING:
    from enginehouse.engines.base import Engine, ServedEngine

DEFAULT_ENGINE = "vllm"
ENGINES = Registry(
    "engine",
    {
        "vllm": "enginehouse.engines.vllm.engine:VllmEngine",
        "hf": "enginehouse.engines.hf.engine:HfEngine",
        "llamacpp": "enginehouse.engines.llamacpp.engine:LlamaCppEngine",
        "sglang": "enginehouse.engines.sglang.engine:SglangEngine",
        "megatron": "enginehouse.engines.megatron.engine:MegatronEngine",
        "openai": "enginehouse.engines.openai.engine:OpenAIEngine",
        "anthropic": "enginehouse.engines.anthropic.engine:AnthropicEngine",
        "openrouter": "enginehouse.engines.openrouter.engine:OpenRouterEngine",
    },
    group="enginehouse.engines",
)


def load_engine(name: str | None = None) -> Engine:
    """The engine called `name`, by default vLLM.

    Raises UnknownNameError, and ConfigurationError for a plug-in that is broken.
    """
    engine: Engine = ENGINES.load(name or DEFAULT_ENGINE)()
    return engine


def load_served_engine(name: str | None = None) -> ServedEngine:
    """As `load_engine`, for an engine that we start. Raises ConfigurationError for another one."""
    from enginehouse.engines.base import ServedEngine

    engine = load_engine(name)
    if not isinstance(engine, ServedEngine):
        raise ConfigurationError(
            f"{name} runs elsewhere: it is neither installed nor started here",
            fix=f"leave that out: eval, bench, chat and sample take --engine {name}",
        )
    return engine
