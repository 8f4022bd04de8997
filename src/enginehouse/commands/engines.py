"""What each engine can do, told by the engines themselves."""

from __future__ import annotations

from enginehouse.core.sampler import Capability
from enginehouse.engines.base import Engine, RemoteEngine, ServedEngine
from enginehouse.engines.registry import ENGINES
from enginehouse.results.engines import EngineFacts


def engine_facts() -> list[EngineFacts]:
    """Every engine that there is, by name."""
    return [_facts(name, ENGINES.load(name)()) for name in ENGINES.names()]


def _facts(name: str, engine: Engine) -> EngineFacts:
    capabilities = engine.capabilities(None)
    return EngineFacts(
        name=name,
        runs="elsewhere" if isinstance(engine, RemoteEngine) else "here",
        tried=engine.tried,
        model_format=engine.model_format if isinstance(engine, ServedEngine) else None,
        capabilities=tuple(c for c in Capability if c in capabilities.supports),
        ignored=capabilities.ignored,
        url_variables=engine.url_variables if isinstance(engine, RemoteEngine) else (),
        key_variables=engine.key_variables if isinstance(engine, RemoteEngine) else (),
    )
