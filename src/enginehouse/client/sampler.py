"""A Sampler over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from contextvars import ContextVar
from typing import Protocol, Self, TypeVar

import msgspec

from enginehouse.client.limits import Adaptive, AdaptiveController, Limit
from enginehouse.client.open_files import most_connections
from enginehouse.client.rate_limits import Pace
from enginehouse.client.replies import demand_whole, events
from enginehouse.client.retry import Retries, Tried, with_retries
from enginehouse.client.transport import (
    AiohttpTransport,
    Timeouts,
    Transport,
    WireReply,
    WireRequest,
    WireStream,
    normal_base_url,
    redacted,
)
from enginehouse.client.turns import Turns
from enginehouse.client.unchecked import Unchecked
from enginehouse.client.wire import OPENAI, AdapterEndpoints, Wire
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    RateLimitedError,
    UnknownModelError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Delta,
    Load,
    LoadSignal,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.dialects.base import Dialect, require

DEFAULT_CONCURRENCY = 64
_LOAD_TIMEOUT = 5.0  # seconds; an older reading says nothing about the queue now
_NO_TURN = nullcontext()
T = TypeVar("T")

# True where what a restarted server had been told is told again: no delivery lets that wait.
RESTORING: ContextVar[bool] = ContextVar("restoring", default=False)


class Delivery(Protocol):
    """What every request goes through once it has a place among those under way.

    Whoever keeps the server alive delivers a request again that a dead server took with it.
    """

    async def __call__(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, called once or more often."""
        ...


async def delivered_once(attempt: Callable[[], Awaitable[T]]) -> T:
    """Delivery where nobody keeps the server alive."""
    return await attempt()


class HTTPSampler:
    """Asks one server; an asynchronous context manager.

    `base_url` may end in /v1; `wire` says how this kind of server is spoken to. `model` None is the
    first that the server lists. `concurrency` is a
    number, or Adaptive bounds; None is Adaptive() where there is a load signal to follow, else 64.
    It is never more than this process may open connections: `bounded_to` says where that was less.
    `turns`, shared by a server's samplers, keeps requests apart that it does not bear together.
    Any number of tasks may share one sampler; requests beyond the limit wait here.
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
        turns: Turns | None = None,
        deliver: Delivery = delivered_once,
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
        self._pace = (
            Pace(patience=self._retries.patience, endurance=self._retries.endurance)
            if wire.rate_limited
            else None
        )
        self._turns = turns
        self._deliver = deliver
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
        self._limit = Limit(concurrency.start if isinstance(concurrency, Adaptive) else concurrency)
        self._restoring = asyncio.Lock()  # one at a time, so that no two disturb one another
        self._open: Transport | None = None
        self._stack = AsyncExitStack()
        self._unchecked: Unchecked | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool and find the default model. Raises WireError."""
        async with AsyncExitStack() as stack:
            self._open = await stack.enter_async_context(
                AiohttpTransport(
                    self.base_url,
                    api_key=self._api_key,
                    admin_key=self._admin_key,
                    authorize=self._wire.authorize,
                    timeouts=self._timeouts,
                )
            )
            if self._model is None:
                self._model = await self._first_model()
            if self._adaptive is not None:
                controller = AdaptiveController(self._limit, bounds=self._adaptive)
                task = asyncio.create_task(controller.run(self._load_or_none))
                stack.push_async_callback(_cancelled, task)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self._open = None

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of the server."""
        return self._capabilities

    @property
    def model(self) -> str:
        """The name that requests without one ask for."""
        assert self._model is not None, "known once the sampler is entered"
        return self._model

    @property
    def concurrency(self) -> int:
        """How many requests may be under way just now."""
        return self._limit.limit

    @property
    def in_flight(self) -> int:
        """How many requests are under way just now."""
        return self._limit.held

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Ask once. Raises WireError; retryable errors have been retried already."""
        dialect = self._dialect(request)
        wire = await self._encoded(dialect, request, stream=False)
        if RESTORING.get():  # turns and places are held by requests that wait for the end of that
            async with self._restoring:
                return await self._deliver(lambda: self._answer(wire, dialect, request))
        async with self._turn(request), self._limit:
            return await self._deliver(lambda: self._answer(wire, dialect, request))

    async def _answer(
        self, wire: WireRequest, dialect: Dialect, request: SampleRequest
    ) -> SampleResponse:
        tried = await self._tried(self._reply, wire)
        reply = tried.value
        timing = Timing(started=reply.started, elapsed=reply.elapsed, attempts=tried.attempts)
        try:
            response = dialect.decode(reply.body, request=request, timing=timing)
        except WireError as error:
            raise self._redacted(error) from None
        for completion in response.completions:
            demand_whole(completion.finish_reason)
        return response

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Ask once, yielding the answer as it is made; retried only until the reply begins.

        A consumer that may leave early closes it with contextlib.aclosing.
        """
        dialect = self._dialect(request)
        wire = await self._encoded(dialect, request, stream=True)
        async with self._turn(request), self._limit, AsyncExitStack() as stack:

            async def begin(wire: WireRequest) -> WireStream:
                async with AsyncExitStack() as failing:
                    turn = await self._pace.turn() if self._pace is not None else 0
                    stream = await failing.enter_async_context(self._transport.stream(wire))
                    self._check(stream, turn)
                    stack.push_async_exit(failing.pop_all())
                    return stream

            tried = await self._deliver(lambda: self._tried(begin, wire))
            async for data in events(tried.value, dialect):
                try:
                    deltas = dialect.decode_chunk(data)
                except WireError as error:
                    raise self._redacted(error) from None
                for delta in deltas:
                    demand_whole(delta.finish_reason)
                    yield delta

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The engine's own token ids of `text`. Raises WireError."""
        require(self._capabilities, Capability.TOKENIZE, "tokenize")
        form = self._wire.tokenizing
        assert form is not None, "an engine that declares tokenize has an endpoint for it"
        body = form.encode(text, model=self.model, add_special_tokens=add_special_tokens)
        async with self._limit:
            tried = await self._send(WireRequest("POST", form.path, body))
        return form.decode(tried.value.body)

    async def models(self) -> tuple[str, ...]:
        """The names that the server lists. Raises WireError."""
        return self._wire.decode_models(await self._list())

    async def _list(self) -> bytes:
        path = self._wire.models_path
        if path is None:
            raise UnsupportedError(
                f"the server at {self.base_url} does not list its models", fix="name the model"
            )
        return (await self._send(WireRequest("GET", path))).value.body

    async def load_adapter(self, name: str, *, path: str) -> str:
        """Load the LoRA adapter in `path`, a folder as the server sees it, under `name`.

        Returns the model that requests name to be answered by it.
        """
        await self._send(self._adapters().load(name, path))
        return self.adapter_model(name)

    def adapter_model(self, name: str) -> str:
        """The model that requests name to be answered by the adapter `name`, loaded or not."""
        return self._adapters().model(self.model, name)

    async def unload_adapter(self, name: str) -> None:
        """Forget the adapter `name`; requests for it are UnknownModelErrors from then on."""
        await self._send(self._adapters().unload(name))

    def _adapters(self) -> AdapterEndpoints:
        require(self._capabilities, Capability.ADAPTERS, "LoRA adapters")
        endpoints = self._wire.adapters
        if endpoints is None:
            raise UnsupportedError(
                "this engine loads no adapters while it runs", fix="name them when it is started"
            )
        return endpoints

    async def load(self) -> Load | None:
        """The server's queue now; None without a load signal, or if the server does not say.

        Raises WireError; asked once, never retried.
        """
        if self._load_signal is None:
            return None
        reply = await self._transport.send(WireRequest("GET", self._load_signal.path))
        if reply.status != 200:
            raise self._error(reply.status, reply.body, reply.retry_after)
        return self._load_signal.parse(reply.body.decode("utf-8", "replace"))

    async def _load_or_none(self) -> Load | None:
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT):
                return await self.load()
        except (WireError, TimeoutError):
            return None

    async def _first_model(self) -> str:
        names = await self.models()
        if not names:
            raise UnknownModelError(f"the server at {self.base_url} lists no model")
        return names[0]

    @property
    def _transport(self) -> Transport:
        if self._open is None:
            raise RuntimeError("use the sampler inside `async with`")
        return self._open

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
                self._unchecked = read(await self._list())
            self._unchecked.check(request, model=model)
        fresh = stream and self._wire.closes_streams
        return WireRequest(self._wire.method, dialect.path, body, fresh=fresh)

    async def _send(self, wire: WireRequest) -> Tried[WireReply]:
        return await self._deliver(lambda: self._tried(self._reply, wire))

    async def _reply(self, wire: WireRequest) -> WireReply:
        turn = await self._pace.turn() if self._pace is not None else 0
        reply = await self._transport.send(wire)
        self._check(reply, turn)
        return reply

    def _check(self, reply: WireReply | WireStream, turn: int) -> None:
        """Raise the error that a reply stands for; `turn` is its request's number in the pace."""
        pace, find = self._pace, self._wire.reply_error
        error: WireError | None = None
        if reply.status != 200:
            error = self._error(reply.status, reply.body, reply.retry_after)
        elif find is not None and (found := find(reply.body)):
            error = self._redacted(found)
        if pace is not None:
            pace.note(turn, reply.headers)
            if isinstance(error, RateLimitedError):
                pace.refused(error.retry_after)
            else:
                pace.succeeded()
        if error is not None:
            raise error

    async def _tried(
        self, send: Callable[[WireRequest], Awaitable[T]], wire: WireRequest
    ) -> Tried[T]:
        async def attempt() -> T:
            nonlocal wire
            try:
                return await send(wire)
            except ConnectionFailedError:
                # where one kept connection was closed under us, the others may be, too
                wire = msgspec.structs.replace(wire, fresh=True)
                raise

        pace = self._pace
        if pace is None:
            return await with_retries(attempt, retries=self._retries)
        return await with_retries(attempt, retries=self._retries, exhausted=lambda: pace.exhausted)

    def _turn(self, request: SampleRequest) -> AbstractAsyncContextManager[None]:
        return self._turns.of(request) if self._turns is not None else _NO_TURN

    def _error(self, status: int, body: bytes, retry_after: float | None) -> WireError:
        return self._redacted(self._wire.error_reply(status, body, retry_after=retry_after))

    def _redacted(self, error: WireError) -> WireError:
        for key in (self._api_key, self._admin_key):
            error = redacted(error, api_key=key)
        return error


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
