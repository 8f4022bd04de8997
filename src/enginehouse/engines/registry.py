"""The engines there are. Listing them imports none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.registry import Registry, load_object
from enginehouse.engines.own_command import OwnCommand

if TYPE_CHECKING:
    from enginehouse.engines.base import Engine, ServedEngine

DEFAULT_ENGINE = "vllm"
REFERENCE_ENGINE = "hf"  # computes with transformers and PEFT, against which others are checked


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


_SERVED = {
    "vllm": "enginehouse.engines.vllm.engine:VllmEngine",
    "hf": "enginehouse.engines.hf.engine:HfEngine",
    "llamacpp": "enginehouse.engines.llamacpp.engine:LlamaCppEngine",
    "sglang": "enginehouse.engines.sglang.engine:SglangEngine",
    "generic": "enginehouse.engines.generic.engine:GenericEngine",
}
_REMOTE = {
    "megatron": "enginehouse.engines.megatron.engine:MegatronEngine",
    "openai": "enginehouse.engines.openai.engine:OpenAIEngine",
    "anthropic": "enginehouse.engines.anthropic.engine:AnthropicEngine",
    "openrouter": "enginehouse.engines.openrouter.engine:OpenRouterEngine",
}
# The classes have them, too, but importing one takes a tenth of a launch's time.
_OWN_COMMANDS = {
    "vllm": "enginehouse.engines.vllm.own_command:OWN_COMMAND",
    "llamacpp": "enginehouse.engines.llamacpp.own_command:OWN_COMMAND",
    "sglang": "enginehouse.engines.sglang.own_command:OWN_COMMAND",
    "generic": "enginehouse.engines.generic.own_command:OWN_COMMAND",
}

ENGINES = Registry(
    "engine",
    {**_SERVED, **_REMOTE},
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
            fix=f"leave that out: eval, bench, chat and sample take --engine {name}, and a launch "
            "file its url under target.api_endpoint, with deployment: none",
        )
    return engine


def own_command(name: str) -> OwnCommand:
    """How an engine that we start is started without us. Imports no class of our own engines.

    Raises UnknownNameError, and ConfigurationError for an engine that runs elsewhere and for a
    plug-in that is broken.
    """
    if name in _SERVED:
        target = _OWN_COMMANDS.get(name)
        command: OwnCommand = load_object(target) if target is not None else OwnCommand()
        return command
    return _own_command_of(load_served_engine(name))


def _own_command_of(engine: Engine) -> OwnCommand:
    from enginehouse.engines.base import SupportsHistory, SupportsOwnCommand

    if isinstance(engine, SupportsOwnCommand):
        return engine.own_command
    removed = engine.removed_flags if isinstance(engine, SupportsHistory) else {}
    return OwnCommand(removed_flags=removed)


@cache
def engine_variables() -> tuple[str, ...]:
    """The beginnings of the environment variables that are settings of some engine."""
    commands = (*map(own_command, _SERVED), *map(_own_command_of, _plug_ins()))
    return tuple(start for command in commands for start in command.variables)


def hosted_engine(url: str) -> str | None:
    """The remote engine whose usual address is on the host of `url`; None for any other server."""
    if (host := urlsplit(url).hostname) is None:
        return None
    for engine in (*map(load_engine, _REMOTE), *_plug_ins()):
        if urlsplit(getattr(engine, "default_url", None) or "").hostname == host:
            return engine.name
    return None


def engines_that(can: Callable[[Engine], bool]) -> tuple[str, ...]:
    """The names of the engines that have an ability, sorted. Imports all of them."""
    own = map(load_engine, (*_SERVED, *_REMOTE))
    return tuple(sorted(engine.name for engine in (*own, *_plug_ins()) if can(engine)))


def _plug_ins() -> Iterator[Engine]:
    """Those of other packages; `enginehouse doctor` says what is wrong with one that is missing."""
    for name in ENGINES.names():
        if ENGINES.package(name) is not None:
            try:
                engine = load_engine(name)
            except ConfigurationError:
                continue
            yield engine
