"""The backends: blocking, for a running vLLM or an engine that lives as long as they do."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from enginehouse.client.sampler import HTTPSampler
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
from enginehouse.deployment.opening import open_deployment
from enginehouse.engines.base import Engine
from enginehouse.engines.registry import load_engine
from enginehouse.facades.agent_arena.configuration import (
    BackendConfig,
    HFBackendConfig,
    LlamaCppBackendConfig,
    VLLMBackendConfig,
)
from enginehouse.runtime.blocking import Opening, Portal
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import attach_server
from enginehouse.tools import CallOutcome, Ladder, ToolResult, call_tools

if TYPE_CHECKING:
    from enginehouse.facades.agent_arena.composing import BackendSettings

logger = logging.getLogger("enginehouse.facades.agent_arena")
_FINISH_REASONS = {
    CallOutcome.CALLED: "tool_calls",
    CallOutcome.ANSWERED: "stop",
    CallOutcome.MISSING: "stop",
    CallOutcome.INVALID: "stop",
    CallOutcome.TRUNCATED: "length",
}


@dataclass
class GenerationResult:
    """An answer, or the reason why there is none.

    `finish_reason` is "stop", "length", "tool_calls" or "error"; in the last case `text` is empty
    and `metadata["error"]` is the reason. `tokens_used` counts prompts and answers. `metadata`
    also has "model"; with tools "step" and "outcome" of `tools.call_tools` and, if there was a
    valid call, "tool_call" (the first one's "name" and "arguments") and "tool_calls" (all).
    """

    text: str
    tokens_used: int
    finish_reason: str
    metadata: dict[str, Any] = field(default_factory=dict)


class BaseBackend(ABC):
    """The interface of every backend; a `with` block unloads it at the end."""

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
        """Answer a prompt; None means the configuration's value."""

    @abstractmethod
    def generate_with_tools(
        self, prompt: str, tools: Sequence[Mapping[str, Any]], temperature: float | None = None
    ) -> GenerationResult:
        """Answer a prompt; the model may call the tools."""

    @abstractmethod
    def is_available(self) -> bool:
        """Whether it can answer now."""

    @abstractmethod
    def unload(self) -> None:
        """Release everything. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()


@dataclass(frozen=True)
class _Line:
    """An open connection to a server."""

    sampler: HTTPSampler
    engine: Engine
    api_key: str | None

    async def answers(self) -> bool:
        """True, or an error if the server does not list its models within 10 s; tried once."""
        await attach_server(self.sampler.base_url, engine=self.engine, api_key=self.api_key)
        return True


class _SampledBackend(BaseBackend):
    """Asks one model through a sampler on a separate thread."""

    _completes: ClassVar[bool] = False  # a prompt without a system prompt is continued as text

    def __init__(self, config: BackendConfig, opening: Opening[_Line]) -> None:
        super().__init__(config)
        name = f"{type(self).__name__}({config.model_path})"
        self.client: Portal[_Line] | None = Portal(opening, name=name)
        self._ladder = Ladder()

    def generate(
        self,
        prompt: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        system_prompt: str | None = None,
    ) -> GenerationResult:
        """Answer a prompt; None means the configuration's value.

        A failed request is a result with the finish reason "error". Raises ConfigurationError for
        invalid values, and RuntimeError after `unload`.
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
        """Answer a prompt; the model may call the tools.

        A tool is {"name", "description", "parameters"} (a JSON Schema), an OpenAI tool, or a typed
        function. Every call in the result is valid; a missing or invalid one is requested in
        another way (see `tools.call_tools`), a failed one is not. Fails like `generate`.
        """
        if not self.config.function_calling:
            raise ConfigurationError(
                "tools were given, but function_calling is off for this backend",
                fix="turn it on (function_calling.enabled), or call generate",
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
        """Whether its server lists its models now; tried once, for at most 10 s."""
        if self.client is None:
            return False
        try:
            return self.client.call(_Line.answers)
        except EnginehouseError as error:
            logger.debug("not available: %s", error)
            return False

    def unload(self) -> None:
        """Close every connection and stop what was started for this. Idempotent.

        In-flight calls of other threads raise RuntimeError. Raises StopError if a process of a
        server is still alive.
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
            logger.error("%s", error)  # noqa: TRY400 - the message says everything
            failure = {"error": str(error), "error_type": type(error).__name__}
            return GenerationResult("", 0, "error", self._origin() | failure)

    def _origin(self) -> dict[str, Any]:
        return {"model": self.config.model_path}


class VLLMBackend(_SampledBackend):
    """Asks a vLLM server. `unload` leaves the server running.

    The server may be started after this is made, so it has a plain sampler instead of a deployment,
    which would need the server at once.
    """

    config: VLLMBackendConfig
    _completes = True

    def __init__(self, config: VLLMBackendConfig) -> None:
        super().__init__(config, lambda: _attached(config))

    def _origin(self) -> dict[str, Any]:
        return super()._origin() | {"api_base": self.config.api_base}


class LlamaCppBackend(_SampledBackend):
    """Serves a GGUF file with llama.cpp until `unload`.

    The constructor waits until the server is ready; the first one on a machine may build llama.cpp.
    Raises the errors of `enginehouse serve`. The server does not outlive this process.
    """

    def __init__(self, config: BackendConfig) -> None:
        if not isinstance(config, LlamaCppBackendConfig):
            common = {f.name: getattr(config, f.name) for f in fields(BackendConfig)}
            config = LlamaCppBackendConfig(**common)
        settings = config.serving()
        super().__init__(config, lambda: _served(settings))


class HFBackend(_SampledBackend):
    """Serves a checkpoint with Hugging Face Transformers until `unload`.

    Otherwise like LlamaCppBackend.
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
    async with open_deployment(config, Context(notify=logger.info)) as deployment:
        with deployment.incidents.subscribe(_warn):
            yield _Line(deployment.sampler, deployment.engine, deployment.server.api_key)


def _warn(incident: Incident) -> None:
    logger.warning("the server died: %s; %s", incident.cause, incident.consequence)


def _calls(result: ToolResult) -> dict[str, Any]:
    said: dict[str, Any] = {"step": result.step.value, "outcome": result.outcome.value}
    if result.why:
        said["why"] = result.why
    calls = [{"name": call.name, "arguments": call.arguments} for call in result.calls]
    if calls:
        said |= {"tool_call": calls[0], "tool_calls": calls}
        # the form of Agent Arena's own fallback, which its agents still read
        said["parsed_tool_call"] = calls[0] | {
            "tool": calls[0]["name"],
            "params": calls[0]["arguments"],
            "reasoning": result.text,
        }
    return said


def make_backend(settings: BackendSettings) -> BaseBackend:
    """The backend that the composed settings describe (see `composing.compose_backend`)."""
    values = settings.model_dump(exclude={"type"})
    values["function_calling"] = settings.function_calling.enabled
    if settings.type == "llama_cpp":
        return LlamaCppBackend(LlamaCppBackendConfig(**values))
    values["model_path"] = values.pop("model")
    if settings.type == "hf":
        return HFBackend(HFBackendConfig(**values))
    names = {f.name for f in fields(VLLMBackendConfig)}  # the others are for the server
    return VLLMBackend(VLLMBackendConfig(**{n: v for n, v in values.items() if n in names}))
