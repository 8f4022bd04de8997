"""A Sampler over HTTP: a request is encoded, sent through the stack of layers, and decoded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Self, TypeVar

import msgspec

from enginehouse.client.concurrency import Adaptive, AdaptiveController, ConcurrencyLimit
from enginehouse.client.exchange import Exchange, Forward, Reply
from enginehouse.client.open_files import most_connections
from enginehouse.client.pacing import Pacing
from enginehouse.client.replies import events, require_finished
from enginehouse.client.retry import Retries, Retrying, Sleep
from enginehouse.client.spread import Branch, Instance, Instances, Spread
from enginehouse.client.stack import ServerLayers, WireLayer, build_stack
from enginehouse.client.transport import (
    Timeouts,
    Transport,
    WireRequest,
    normal_base_url,
    open_transport,
    redacted,
)
from enginehouse.client.unchecked import Unchecked
from enginehouse.client.wire import OPENAI, AdapterEndpoints, Wire
from enginehouse.core.errors import (
    ConfigurationError,
    UnknownModelError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt, TokenPrompt
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Delivery,
    Delta,
    Load,
    LoadSignal,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects.base import Dialect, require

T = TypeVar("T")
DEFAULT_CONCURRENCY = 64
_NO_TOKENS = TokenPrompt(())
_PLAIN = SamplingParameters()


class HTTPSampler:
    """Samples from one server, or from several that answer alike; an asynchronous context manager.

    `base_url` may end in /v1; `wire` describes this kind of server. `model` None is the first that
    the server lists. `concurrency` is a number, or Adaptive bounds; None is Adaptive()
    where there is a load signal to follow, and 64 elsewhere. It is never more than the connections
    that this process may open: `bounded_to` is set where that is less. `shared` are the layers that
    the server's samplers have in common. `sleep` is what waits between attempts.
    Any number of tasks may share one sampler; requests beyond the limit wait.
    """

    def __init__(  # noqa: PLR0913 (all but two are optional, and independent of one another)
        self,
        base_url: str,
        *,
        model: str | None = None,
        capabilities: Capabilities,
        wire: Wire = OPENAI,
        api_key: str | None = None,
        admin_key: str | None = None,
        concurrency: int | Adaptive | None = None,
        load_signal: LoadSignal | None = None,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        shared: ServerLayers | None = None,
        instances: Instances | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.base_url = normal_base_url(base_url)
        self._model = model
        self._capabilities = capabilities
        self._wire = wire
        self._api_key = api_key
        self._admin_key = admin_key
        self._load_signal = load_signal
        self._timeouts = timeouts or Timeouts()
        self._retries = retries or Retries()
        self._shared = shared or ServerLayers()
        self._instances = instances
        self._sleep = sleep
        if concurrency is None:
            concurrency = DEFAULT_CONCURRENCY if load_signal is None else Adaptive()
        if isinstance(concurrency, Adaptive) and load_signal is None:
            raise ConfigurationError(
                "adaptive concurrency has no load signal to follow",
                fix="give a number, or the engine's load_signal",
            )
        self.bounded_to: int | None = None
        wanted = concurrency.maximum if isinstance(concurrency, Adaptive) else concurrency
        most = most_connections()
        if most is not None and wanted > most:
            self.bounded_to = most
            concurrency = concurrency.up_to(most) if isinstance(concurrency, Adaptive) else most
        self._adaptive = concurrency if isinstance(concurrency, Adaptive) else None
        self._limit = ConcurrencyLimit(
            concurrency.start if isinstance(concurrency, Adaptive) else concurrency
        )
        self._transports: list[Transport] = []
        self._keys: set[str] = set()  # which no error shows
        self._send: Forward = _not_entered
        # to the lowest layer, of each server
        self._send_directly: Callable[[Exchange], Awaitable[list[Reply]]] = _not_entered
        self._exit_stack = AsyncExitStack()
        self._unchecked: Unchecked | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool and find the default model. Raises WireError."""
        async with AsyncExitStack() as exit_stack:
            exit_stack.push_async_callback(self._close_transports)
            if self._instances is None:
                branch = self._branch(
                    self.base_url,
                    api_key=self._api_key,
                    admin_key=self._admin_key,
                    shared=self._shared,
                    limit=self._limit,
                )
                self._send = branch.send
                self._send_directly = partial(_sent_once, branch.send_directly)
            else:
                assert self._model is not None, "instances are asked by the name of a model"
                spread = Spread(self._instances, model=self._model, open_branch=self._branch_of)
                self._send = partial(self._limit.send, forward=spread.send)
                self._send_directly = spread.send_directly
            if self._model is None:
                names = await self.models()
                if not names:
                    raise UnknownModelError(f"the server at {self.base_url} lists no model")
                self._model = names[0]
            if self._adaptive is not None:
                controller = AdaptiveController(self._limit, bounds=self._adaptive)
                task = asyncio.create_task(controller.run(self.load))
                exit_stack.push_async_callback(_cancelled, task)
            self._exit_stack = exit_stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit_stack.aclose()
        self._send, self._send_directly = _not_entered, _not_entered

    def _branch(
        self,
        base_url: str,
        *,
        api_key: str | None,
        admin_key: str | None,
        shared: ServerLayers,
        limit: ConcurrencyLimit | None,
    ) -> Branch:
        """A stack of layers down to connections of its own, which are closed with the sampler."""
        transport = open_transport(
            base_url,
            api_key=api_key,
            admin_key=admin_key,
            authorize=self._wire.authorize,
            timeouts=self._timeouts,
        )
        self._transports.append(transport)
        self._keys |= {key for key in (api_key, admin_key) if key}
        wire_layer = WireLayer(transport, wire=self._wire, redact=self._redacted)
        retries, pacing = self._retries, None
        if self._wire.rate_limited:
            pacing = Pacing(
                patience=retries.patience, endurance=retries.endurance, sleep=self._sleep
            )
        stack = build_stack(
            wire_layer,
            pacing=pacing,
            retrying=Retrying(retries, pacing=pacing, sleep=self._sleep),
            limit=limit,
            shared=shared,
            redact=self._redacted,
        )
        return Branch(send=stack, send_directly=wire_layer.send)

    def _branch_of(self, instance: Instance) -> Branch:
        return self._branch(
            instance.base_url,
            api_key=instance.api_key,
            admin_key=instance.admin_key,
            shared=instance.layers,
            limit=None,
        )

    async def _close_transports(self) -> None:
        transports, self._transports = self._transports, []
        await asyncio.gather(*(transport.close() for transport in transports))

    @property
    def capabilities(self) -> Capabilities:
        """What the server supports."""
        return self._capabilities

    @property
    def model(self) -> str:
        """The model for requests that name none."""
        assert self._model is not None, "known once the sampler is entered"
        return self._model

    @property
    def concurrency(self) -> int:
        """How many requests may be in flight now."""
        return self._limit.limit

    @property
    def in_flight(self) -> int:
        """How many requests are in flight now."""
        return self._limit.in_flight

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Ask once. Raises WireError; retryable errors have been retried already."""
        dialect = self._dialect(request)

        def decode(reply: Reply) -> SampleResponse:
            wire = reply.wire
            timing = Timing(started=wire.started, elapsed=wire.elapsed, attempts=reply.attempts)
            response = dialect.decode(wire.body, request=request, timing=timing)
            for completion in response.completions:
                require_finished(completion.finish_reason)
            return response

        wire = await self._encoded(dialect, request, stream=False)
        reply = await self._send(Exchange(wire, decode, request))
        response: SampleResponse = reply.answer
        if reply.weights_digest is not None:
            response = msgspec.structs.replace(response, weights_digest=reply.weights_digest)
        return response

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Ask once, yielding the answer as it is generated; retried only until the reply begins.

        A consumer that may leave early closes it with contextlib.aclosing.
        """
        dialect = self._dialect(request)
        wire = await self._encoded(dialect, request, stream=True)
        reply = await self._send(Exchange(wire, sample=request, streamed=True))
        assert reply.wire.chunks is not None
        try:
            async for data in events(reply.wire.chunks, dialect):
                try:
                    deltas = dialect.decode_chunk(data)
                except WireError as error:
                    raise self._redacted(error) from None
                for delta in deltas:
                    require_finished(delta.finish_reason)
                    yield delta
        finally:
            reply.close()

    async def post(self, path: str, body: bytes, *, scores: SamplingParameters = _PLAIN) -> bytes:
        """The reply to a body that somebody else encoded, for /v1/completions and the like.

        `scores` has the log-probabilities that it asks for. Raises WireError as `sample` does.
        """
        return (await self.forward(path, body, scores=scores)).wire.body

    async def post_streamed(
        self, path: str, body: bytes, *, scores: SamplingParameters = _PLAIN
    ) -> Reply:
        """As `post`, for a reply in pieces, which the caller closes."""
        return await self.forward(path, body, scores=scores, streamed=True)

    async def forward(
        self,
        path: str,
        body: bytes | None,
        *,
        model: str | None = None,
        scores: SamplingParameters = _PLAIN,
        streamed: bool = False,
        decode: Callable[[Reply], Any] | None = None,
        decode_event: Callable[[bytes], object] | None = None,
    ) -> Reply:
        """The reply to a request that somebody else encoded; without a body it is a GET.

        `model` is the one that it names, `scores` has the log-probabilities that it asks for. A
        `streamed` reply is closed by the caller. `decode` and `decode_event` are those of an
        Exchange. Raises WireError as `sample` does, with the body of an error reply.
        """
        wire = WireRequest(
            "GET" if body is None else "POST",
            path,
            body,
            fresh=streamed and self._wire.closes_streams,
        )
        sample = None
        if body is not None:
            sample = SampleRequest(prompt=_NO_TOKENS, parameters=scores, model=model)
        return await self._send(
            Exchange(wire, decode, sample, streamed=streamed, decode_event=decode_event)
        )

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The engine's own token ids of `text`. Raises WireError."""
        require(self._capabilities, Capability.TOKENIZE, "tokenize")
        form = self._wire.tokenizing
        assert form is not None, "an engine that declares tokenize has an endpoint for it"
        body = form.encode(text, model=self.model, add_special_tokens=add_special_tokens)
        exchange = Exchange(
            WireRequest("POST", form.path, body), lambda reply: form.decode(reply.wire.body)
        )
        token_ids: tuple[int, ...] = (await self._send(exchange)).answer
        return token_ids

    async def models(self) -> tuple[str, ...]:
        """The names that the server lists. Raises WireError."""
        return await self.read_models(self._wire.decode_models)

    async def read_models(self, decode: Callable[[bytes], T]) -> T:
        """The server's list of models, as `decode` reads it. Raises WireError."""
        path = self._wire.models_path
        if path is None:
            raise UnsupportedError(
                f"the server at {self.base_url} does not list its models", fix="name the model"
            )
        exchange = Exchange(
            WireRequest("GET", path), lambda reply: decode(reply.wire.body), limited=False
        )
        models: T = (await self._send(exchange)).answer
        return models

    async def load_adapter(self, name: str, *, path: str) -> str:
        """Load the LoRA adapter in `path`, a folder as the server sees it, under `name`.

        Returns the model that requests name to use it.
        """
        await self._send(Exchange(self._adapters().load(name, path), limited=False))
        return self.adapter_model(name)

    def adapter_model(self, name: str) -> str:
        """The model that requests name to use the adapter `name`, loaded or not."""
        return self._adapters().model(self.model, name)

    async def unload_adapter(self, name: str) -> None:
        """Unload the adapter `name`; requests for it raise UnknownModelError from then on."""
        await self._send(Exchange(self._adapters().unload(name), limited=False))

    def _adapters(self) -> AdapterEndpoints:
        require(self._capabilities, Capability.ADAPTERS, "LoRA adapters")
        endpoints = self._wire.adapters
        if endpoints is None:
            raise UnsupportedError(
                "this engine cannot load adapters while it runs", fix="name them when starting it"
            )
        return endpoints

    async def load(self) -> Load | None:
        """The server's queue now; None without a load signal, or if the reply does not say.

        Of several servers, what runs and waits in all of them together. Sent once, past all layers
        but the last. Raises WireError.
        """
        if self._load_signal is None:
            return None
        loads: list[Load] = []
        exchange = Exchange(WireRequest("GET", self._load_signal.path))
        for reply in await self._send_directly(exchange):
            if reply.error is not None:
                raise reply.error
            load = self._load_signal.parse(reply.wire.body.decode("utf-8", "replace"))
            if load is None:
                return None
            loads.append(load)
        if len(loads) == 1:
            return loads[0]
        return Load(
            running=sum(load.running for load in loads), waiting=sum(load.waiting for load in loads)
        )

    def _dialect(self, request: SampleRequest) -> Dialect:
        chat = isinstance(request.prompt, ChatPrompt)
        dialect = self._wire.chat if chat else self._wire.completions
        if dialect is None:
            what = "chat prompts" if chat else "prompts without a chat template"
            raise UnsupportedError(
                f"this engine does not support {what}",
                why="it has no endpoint for them; nothing was sent",
                fix=f"make the prompt a {'TextPrompt' if chat else 'ChatPrompt'}",
            )
        return dialect

    async def _encoded(
        self, dialect: Dialect, request: SampleRequest, *, stream: bool
    ) -> WireRequest:
        model = request.model or self.model
        body = dialect.encode(request, model=model, capabilities=self._capabilities, stream=stream)
        if (read := self._wire.unchecked) is not None:
            if self._unchecked is None:
                self._unchecked = await self.read_models(read)
            self._unchecked.require_answerable(request, model=model)
        fresh = stream and self._wire.closes_streams
        delivery = request.delivery
        timeout = delivery.timeout if isinstance(delivery, Delivery) else None
        return WireRequest(self._wire.method, dialect.path, body, fresh=fresh, timeout=timeout)

    def _redacted(self, error: WireError) -> WireError:
        for key in self._keys:
            error = redacted(error, api_key=key)
        return error


async def _sent_once(send: Forward, exchange: Exchange) -> list[Reply]:
    return [await send(exchange)]


async def _not_entered(_: Exchange) -> Any:
    raise RuntimeError("use the sampler inside `async with`")


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
