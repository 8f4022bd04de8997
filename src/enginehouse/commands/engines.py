"""What each engine can do, as its code declares it."""

from __future__ import annotations

from enginehouse.core.sampler import Capability
from enginehouse.engines.base import Engine, RemoteEngine, ServedEngine
from enginehouse.engines.registry import ENGINES
from enginehouse.results.engines import EngineFacts
from enginehouse.runtime.context import Notify


def engine_facts(*, notify: Notify = lambda _: None) -> list[EngineFacts]:
    """Every engine that there is, by name; `notify` hears of plug-ins that cannot be loaded."""
    loaded = ENGINES.load_all(on_error=lambda error: notify(str(error)))
    return [_facts(load()) for load in loaded]


def _facts(engine: Engine) -> EngineFacts:
    capabilities = engine.capabilities(None)
    return EngineFacts(
        name=engine.name,
        runs="elsewhere" if isinstance(engine, RemoteEngine) else "here",
        tried=engine.tried,
        model_format=engine.model_format if isinstance(engine, ServedEngine) else None,
        capabilities=tuple(c for c in Capability if c in capabilities.supports),
        ignored=capabilities.ignored,
        url_variables=engine.url_variables if isinstance(engine, RemoteEngine) else (),
        key_variables=engine.key_variables if isinstance(engine, RemoteEngine) else (),
    )
