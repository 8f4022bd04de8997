"""The backends: blocking, over a vLLM that runs or an engine that lives as long as they do."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.transport import Timeouts
from enginehouse.core.errors import (
    ConfigurationError,
    EnginehouseError,
    ServerGoneError,
    WireError,
)
from enginehouse.core.incidents import Incident
from enginehouse.core.messages import ChatPrompt, Message, Prompt, TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.deployment.serving import serving
from enginehouse.engines.base import Engine
from enginehouse.engines.registry import load_engine
from enginehouse.facades.agent_arena.configuration import (
    BackendConfig,
    HFBackendConfig,
    LlamaCppBackendConfig,
    VLLMBackendConfig,
)
from enginehouse.facades.blocking import Held, Opening
from enginehouse.store.layout import Layout
from enginehouse.tools import CallOutcome, Ladder, ToolResult, call_tools

if TYPE_CHECKING:
    from enginehouse.facades.agent_arena.composing import BackendSettings

logger = logging.getLogger("enginehouse.facades.agent_arena")
_AVAILABILITY = Timeouts(connect=5.0, total=10.0)
_FINISH_REASONS = {
    CallOutcome.CALLED: "tool_calls",
    CallOutcome.ANSWERED: "stop",
    CallOutcome.MISSING: "stop",
    CallOutcome.INVALID: "stop",
    CallOutcome.TRUNCATED: "length",
}


@dataclass
class GenerationResult:
    """An answer, or why there is none.

    `finish_reason` is "stop", "length", "tool_calls", or "error": then `text` is empty and
    `metadata["error"]` says why. `tokens_used` counts prompts and answers. `metadata` also has
    "model"; with tools "step" and "outcome" of `tools.call_tools` and, if there was a valid call,
    "tool_call" (the first one's "name" and "arguments") and "tool_calls" (all).
    """

    text: str
    tokens_used: int
    finish_reason: str
    metadata: dict[str, Any] = field(default_factory=dict)


class BaseBackend(ABC):
    """What every backend does; in a `with` block it is unloaded at the end."""

    def __init__(self, config: BackendConfig) -> None:
        self.config = config

    @abstractmethod
    def generate(
        self,
        prompt: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        system_prompt: str | None = None,
    ) -> GenerationResult:
        """Answer a prompt; None takes the configuration's value."""

    @abstractmethod
    def generate_with_tools(
        self, prompt: str, tools: Sequence[Mapping[str, Any]], temperature: float | None = None
    ) -> GenerationResult:
        """Answer a prompt, calling one of the tools where the model sees fit."""

    @abstractmethod
    def is_available(self) -> bool:
        """Whether it would answer now."""

    @abstractmethod
    def unload(self) -> None:
        """Let everything go. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()


@dataclass(frozen=True)
class _Line:
    """An open way to ask a server."""

    sampler: HTTPSampler
    engine: Engine
    api_key: str | None

    async def answers(self) -> bool:
        """Whether the server lists its models, asked once."""
        once = HTTPSampler(
            self.sampler.base_url,
            capabilities=self.sampler.capabilities,
            wire=self.engine.wire,
            api_key=self.api_key,
            timeouts=_AVAILABILITY,
            retries=Retries(attempts=1),
        )
        async with once:
            return True


class _SampledBackend(BaseBackend):
    """Asks one model through a sampler that lives on a thread of its own."""

    _completes: ClassVar[bool] = False  # a prompt without a system prompt is continued as it is

    def __init__(self, config: BackendConfig, opening: Opening[_Line]) -> None:
        super().__init__(config)
        name = f"{type(self).__name__}({config.model_path})"
        self.client: Held[_Line] | None = Held(opening, name=name)
        self._ladder = Ladder()

    def generate(
        self,
        prompt: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        system_prompt: str | None = None,
    ) -> GenerationResult:
        """Answer a prompt; None takes the configuration's value.

        A request that fails is a result with the finish reason "error". Raises ConfigurationError
        for wrong values, and RuntimeError once it is unloaded.
        """
        parameters = self._given(temperature=temperature, max_tokens=max_tokens).parameters()
        request = SampleRequest(prompt=self._prompt(prompt, system_prompt), parameters=parameters)

        async def ask(line: _Line) -> GenerationResult:
            response = await line.sampler.sample(request)
            (completion,) = response.completions
            return GenerationResult(
                text=completion.text,
                tokens_used=response.prompt_tokens + response.completion_tokens,
                finish_reason=completion.finish_reason or "stop",
                metadata=self._origin(),
            )

        return self._asked(ask)

    def generate_with_tools(
        self, prompt: str, tools: Sequence[Mapping[str, Any]], temperature: float | None = None
    ) -> GenerationResult:
        """Answer a prompt, calling the tools where the model sees fit.

        A tool is {"name", "description", "parameters"} (a JSON Schema), an OpenAI tool, or a typed
        function. Every call in the result is valid; only one that is missing or invalid is asked
        for in another way (see `tools.call_tools`), never one that failed. Fails as `generate`.
        """
        if not self.config.function_calling:
            raise ConfigurationError(
                "tools were given, but function_calling is off for this backend",
                fix="switch it on (function_calling.enabled), or call generate",
            )
        parameters = self._given(temperature=temperature).parameters()
        messages = (Message("user", prompt),)

        async def ask(line: _Line) -> GenerationResult:
            result = await call_tools(
                line.sampler, messages, tools, parameters=parameters, ladder=self._ladder
            )
            return GenerationResult(
                text=result.text,
                tokens_used=result.prompt_tokens + result.completion_tokens,
                finish_reason=_FINISH_REASONS[result.outcome],
                metadata=self._origin() | _calls(result),
            )

        return self._asked(ask)

    def is_available(self) -> bool:
        """Whether its server lists its models now; asked once, for 10 s at most."""
        if self.client is None:
            return False
        try:
            return self.client.call(_Line.answers)
        except EnginehouseError as error:
            logger.debug("not available: %s", error)
            return False

    def unload(self) -> None:
        """Close every connection and stop what was started for this. Idempotent.

        What other threads are asking for ends in a RuntimeError. Raises StopError where something
        of a server is still alive.
        """
        client, self.client = self.client, None
        if client is not None:
            client.close()

    def _given(self, **given: Any) -> BackendConfig:
        return replace(self.config, **{n: value for n, value in given.items() if value is not None})

    def _prompt(self, prompt: str, system_prompt: str | None) -> Prompt:
        if self._completes and not system_prompt:
            return TextPrompt(prompt)
        system = (Message("system", system_prompt),) if system_prompt else ()
        return ChatPrompt((*system, Message("user", prompt)))

    def _asked(self, ask: Callable[[_Line], Awaitable[GenerationResult]]) -> GenerationResult:
        if self.client is None:
            raise RuntimeError(f"this {type(self).__name__} has been unloaded")
        try:
            return self.client.call(ask)
        except (WireError, ServerGoneError) as error:
            logger.error("%s", error)  # noqa: TRY400 - the message says all that is to be said
            failure = {"error": str(error), "error_type": type(error).__name__}
            return GenerationResult("", 0, "error", self._origin() | failure)

    def _origin(self) -> dict[str, Any]:
        return {"model": self.config.model_path}


class VLLMBackend(_SampledBackend):
    """Asks a vLLM server that runs; it need not run yet. `unload` leaves the server alone."""

    config: VLLMBackendConfig
    _completes = True

    def __init__(self, config: VLLMBackendConfig) -> None:
        super().__init__(config, lambda: _attached(config))

    def _origin(self) -> dict[str, Any]:
        return super()._origin() | {"api_base": self.config.api_base}


class LlamaCppBackend(_SampledBackend):
    """Serves a GGUF file with llama.cpp, from here on until `unload`.

    Making one waits until the server is ready; the first one on a machine may build llama.cpp.
    Raises what `enginehouse serve` reports. The server does not outlive this process.
    """

    def __init__(self, config: BackendConfig) -> None:
        if not isinstance(config, LlamaCppBackendConfig):
            common = {f.name: getattr(config, f.name) for f in fields(BackendConfig)}
            config = LlamaCppBackendConfig(**common)
        settings = config.serving()
        super().__init__(config, lambda: _served(settings))


class HFBackend(_SampledBackend):
    """Serves a checkpoint with Hugging Face Transformers, from here on until `unload`.

    As LlamaCppBackend otherwise.
    """

    def __init__(self, config: HFBackendConfig) -> None:
        settings = config.serving()
        super().__init__(config, lambda: _served(settings))


@asynccontextmanager
async def _attached(config: VLLMBackendConfig) -> AsyncIterator[_Line]:
    engine = load_engine()
    sampler = HTTPSampler(
        config.api_base,
        model=config.model_path,
        capabilities=engine.capabilities(None),
        wire=engine.wire,
        api_key=config.api_key,
    )
    async with sampler:
        yield _Line(sampler, engine, config.api_key)


@asynccontextmanager
async def _served(config: ServeConfig) -> AsyncIterator[_Line]:
    layout = Layout.from_environment()
    async with serving(config, layout=layout, notify=logger.info, on_incident=_warn) as ready:
        yield _Line(ready.sampler, ready.engine, ready.server.api_key)


def _warn(incident: Incident) -> None:
    logger.warning("the server died: %s; %s", incident.cause, incident.consequence)


def _calls(result: ToolResult) -> dict[str, Any]:
    said: dict[str, Any] = {"step": result.step.value, "outcome": result.outcome.value}
    if result.why:
        said["why"] = result.why
    calls = [{"name": call.name, "arguments": call.arguments} for call in result.calls]
    if calls:
        said |= {"tool_call": calls[0], "tool_calls": calls}
        # what Agent Arena's own fall-back made of a call, and its agents still read
        said["parsed_tool_call"] = calls[0] | {
            "tool": calls[0]["name"],
            "params": calls[0]["arguments"],
            "reasoning": result.text,
        }
    return said


def make_backend(settings: BackendSettings) -> BaseBackend:
    """The backend that composed settings describe (see `composing.compose_backend`)."""
    values = settings.model_dump(exclude={"type"})
    values["function_calling"] = settings.function_calling.enabled
    if settings.type == "llama_cpp":
        return LlamaCppBackend(LlamaCppBackendConfig(**values))
    values["model_path"] = values.pop("model")
    if settings.type == "hf":
        return HFBackend(HFBackendConfig(**values))
    asking = {f.name for f in fields(VLLMBackendConfig)}  # the others are the server's
    return VLLMBackend(VLLMBackendConfig(**{n: v for n, v in values.items() if n in asking}))
