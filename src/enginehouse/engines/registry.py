"""The engines there are. Listing them imports none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.registry import Registry

if TYPE_CHECKING:
    from enginehouse.engines.base import Engine, ServedEngine

DEFAULT_ENGINE = "vllm"


def problem_of(name: str, engine_class: Any) -> str | None:
    """What is wrong with a plug-in's class; None if nothing is."""
    from enginehouse.engines.base import RemoteEngine, ServedEngine

    engine = engine_class()
    if not isinstance(engine, ServedEngine | RemoteEngine):
        # Which of the two it should be is not said, so it is the one that it lacks least of.
        lacking = [_missing(engine, protocol) for protocol in (ServedEngine, RemoteEngine)]
        least: list[str] = min(lacking, key=len)
        return f"lacks: {', '.join(least)}"
    if engine.name != name:
        return f"is called {engine.name} in its class: the entry point needs the same name"
    return None


def _missing(engine: object, protocol: type) -> list[str]:
    members = {member for base in protocol.__mro__ for member in vars(base)}
    return sorted(m for m in members if not m.startswith("_") and not hasattr(engine, m))


ENGINES = Registry(
    "engine",
    {
        "vllm": "enginehouse.engines.vllm.engine:VllmEngine",
        "hf": "enginehouse.engines.hf.engine:HfEngine",
        "llamacpp": "enginehouse.engines.llamacpp.engine:LlamaCppEngine",
        "sglang": "enginehouse.engines.sglang.engine:SglangEngine",
        "generic": "enginehouse.engines.generic.engine:GenericEngine",
        "megatron": "enginehouse.engines.megatron.engine:MegatronEngine",
        "openai": "enginehouse.engines.openai.engine:OpenAIEngine",
        "anthropic": "enginehouse.engines.anthropic.engine:AnthropicEngine",
        "openrouter": "enginehouse.engines.openrouter.engine:OpenRouterEngine",
    },
    group="enginehouse.engines",
    problem=problem_of,
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
