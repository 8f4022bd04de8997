"""RedBlackBench's providers: `generate(system_prompt, messages)` of a served or hosted model."""

from __future__ import annotations

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Self, get_args

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.transport import normal_base_url
from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.core.messages import ChatPrompt, Message, Role
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.engines.base import RemoteEngine
from enginehouse.engines.hosted import address_of, key_of
from enginehouse.engines.registry import load_engine

VLLM_URL = "http://localhost:8000/v1"


@dataclass(frozen=True)
class ProviderConfig:
    """A model, as its server names it (a path, a served name, a LoRA adapter), and its parameters.

    `api_key` None means the engine's own environment variable, `base_url` None its own address.
    """

    model: str
    temperature: float = 0.7
    max_tokens: int = 1024
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None


class BaseLLMProvider(ABC):
    """Anything that answers a conversation; subclass it for your own provider."""

    def __init__(self, config: ProviderConfig) -> None:
        self.config = config

    @property
    def provider_name(self) -> str:
        """Its name in configurations: "vllm" for VLLMProvider."""
        return type(self).__name__.removesuffix("Provider").lower()

    @abstractmethod
    async def generate(self, system_prompt: str, messages: Sequence[Mapping[str, Any]]) -> str:
        """The answer to `messages`, each with `role` and `content`, after a system prompt."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.config.model})"


class _SamplerProvider(BaseLLMProvider):
    """One model of one server.

    A plain sampler instead of a deployment: providers are made before their server runs, and many
    of them, each with its own model, share the server's connections.
    The first request in an event loop opens connections, which all providers of that server share.
    They are closed with the last of these providers, and at the latest when the loop is shut down,
    as asyncio.run does.
    """

    _engine: ClassVar[str]

    def __init__(
        self,
        model: str,
        temperature: float = 0.7,
        max_tokens: int = 1024,
        api_key: str | None = None,
        base_url: str | None = None,
    ) -> None:
        super().__init__(ProviderConfig(model, temperature, max_tokens, api_key, base_url))
        self._parameters = SamplingParameters(temperature=temperature, max_tokens=max_tokens)
        engine = load_engine(self._engine)
        if base_url is None or api_key is None:
            assert isinstance(engine, RemoteEngine), "the others are given both"
            base_url = base_url or address_of(engine)
            api_key = api_key or key_of(engine)
        self.base_url = normal_base_url(base_url)
        self._server = _Server(self._engine, self.base_url, api_key)

    async def generate(self, system_prompt: str, messages: Sequence[Mapping[str, Any]]) -> str:
        """The answer's text. Raises WireError, after retries if they make sense.

        Any number of tasks may call this: at most 64 requests to a server are in flight.
        """
        conversation = tuple(_message(entry) for entry in messages)
        if system_prompt:
            conversation = (Message("system", system_prompt), *conversation)
        request = SampleRequest(
            prompt=ChatPrompt(conversation), parameters=self._parameters, model=self.config.model
        )
        pool = _pool(self._server)
        pool.users.add(self)
        response = await (await pool.sampler()).sample(request)
        return response.completions[0].text

    async def aclose(self) -> None:
        """Release the running event loop's connections; a later request opens new ones."""
        pool = _pool(self._server)
        pool.users.discard(self)
        if not pool.users:
            del _pools[asyncio.get_running_loop()][self._server]
            await pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Server(NamedTuple):
    engine: str
    base_url: str
    api_key: str | None


class _Pool:
    """The connections of one event loop to one server."""

    def __init__(self, server: _Server) -> None:
        self.users: weakref.WeakSet[_SamplerProvider] = weakref.WeakSet()
        # When an event loop is shut down, it closes the remaining asynchronous generators: the one
        # moment when connections that nobody closed can still be closed properly.
        self._server = server
        self._generator: AsyncGenerator[HTTPSampler] | None = None
        self._opening = asyncio.Lock()
        self._sampler: HTTPSampler | None = None

    async def sampler(self) -> HTTPSampler:
        """The sampler; the first call opens it."""
        async with self._opening:
            if self._sampler is None:
                self._generator = _open(self._server)
                self._sampler = await anext(self._generator)
        return self._sampler

    async def close(self) -> None:
        """Close every connection."""
        if self._generator is not None:
            await self._generator.aclose()


_pools: dict[asyncio.AbstractEventLoop, dict[_Server, _Pool]] = {}


def _pool(server: _Server) -> _Pool:
    loop = asyncio.get_running_loop()
    if loop not in _pools:
        for ended in [other for other in list(_pools) if other.is_closed()]:
            del _pools[ended]
    pools = _pools.setdefault(loop, {})
    if server not in pools:
        pools[server] = _Pool(server)
    return pools[server]


async def _open(server: _Server) -> AsyncGenerator[HTTPSampler]:
    engine = load_engine(server.engine)
    sampler = HTTPSampler(
        server.base_url,
        model="",  # every request names its own
        capabilities=engine.capabilities(None),
        wire=engine.wire,
        api_key=server.api_key,
    )
    async with sampler:
        yield sampler


class VLLMProvider(_SamplerProvider):
    """A model or a LoRA adapter of a vLLM server."""

    _engine = "vllm"

    def __init__(
        self,
        model: str,
        base_url: str = VLLM_URL,
        temperature: float = 0.7,
        max_tokens: int = 1024,
        api_key: str | None = "EMPTY",
    ) -> None:
        super().__init__(model, temperature, max_tokens, api_key or "EMPTY", base_url)


class OpenAIProvider(_SamplerProvider):
    """A model of OpenAI's API; the key from OPENAI_API_KEY when not given."""

    _engine = "openai"


class AnthropicProvider(_SamplerProvider):
    """A model of Anthropic's API; the key from ANTHROPIC_API_KEY when not given."""

    _engine = "anthropic"


class OpenRouterProvider(_SamplerProvider):
    """A model of OpenRouter's API; the key from OPENROUTER_API_KEY when not given."""

    _engine = "openrouter"


_PROVIDERS: dict[str, type[_SamplerProvider]] = {
    "anthropic": AnthropicProvider,
    "openai": OpenAIProvider,
    "openrouter": OpenRouterProvider,
    "vllm": VLLMProvider,
}


def create_provider(options: Mapping[str, Any]) -> BaseLLMProvider:
    """The provider for a configuration's `provider:` block: a `type` and its options.

    Raises ConfigurationError for an unknown type or option.
    """
    given = dict(options)
    kind = given.pop("type", None)
    if kind is None:
        raise ConfigurationError(
            "a provider needs a 'type'", fix=f"one of: {', '.join(sorted(_PROVIDERS))}"
        )
    if kind not in _PROVIDERS:
        raise UnknownNameError("provider type", str(kind), _PROVIDERS)
    known = [option.name for option in fields(ProviderConfig)]
    for name in given:
        if name not in known:
            raise UnknownNameError(f"option of the {kind} provider", name, known)
    if "model" not in given:
        raise ConfigurationError(
            f"the {kind} provider needs a 'model'",
            fix="give it as the server lists it: a served name, a path, or a LoRA adapter",
        )
    return _PROVIDERS[kind](**given)


def _message(entry: Mapping[str, Any]) -> Message:
    try:
        return msgspec.convert(entry, Message)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"not a message: {dict(entry)!r}",
            why=str(error),
            fix=f"give a role ({', '.join(get_args(Role))}) and text as content",
        ) from None
