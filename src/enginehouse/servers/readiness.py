"""When a server is ready: its process lives, it says so, it serves the name, it answers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import msgspec

from enginehouse.client.bodies import MAX_PAGE_BYTES, read_body
from enginehouse.core.errors import StartError, WireError
from enginehouse.engines.base import ServedEngine
from enginehouse.processes.process import Process
from enginehouse.servers.sessions import below, open_session

T = TypeVar("T")
_TICK = 1.0  # seconds between looks at a start's progress
_NOTABLE = 1 << 20  # bytes; whoever only waits reads a few as well
_BE_PATIENT = "read the log; if it was getting on, raise --start-timeout or --progress-timeout"
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.05, 0.1, 1.3
_PROBE = aiohttp.ClientTimeout(total=5)
_PATIENT = aiohttp.ClientTimeout(total=None)


class _Models(msgspec.Struct):
    class Card(msgspec.Struct):
        id: str

    data: list[Card]


class StartLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a start may take in all, and without a sign that it gets on."""

    total: float = 3600.0
    silence: float = 600.0


async def wait_until_ready(
    process: Process,
    *,
    base_url: str,
    engine: ServedEngine,
    model: str,
    api_key: str | None,
    limits: StartLimits,
) -> tuple[str, ...]:
    """Wait; return the names that the server serves.

    Raises StartError as soon as the process ends, when one of the limits is over (it says how
    far it came), or when the server is up but does not do its work. The caller adds log and cause.
    """
    said = "it has not answered yet"

    def note(what: str) -> None:
        nonlocal said
        said = what

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with open_session(base_url, headers=headers) as session:
        probes = asyncio.create_task(_probe(session, engine=engine, model=model, note=note))
        end = asyncio.create_task(_end_of(process))
        patience = asyncio.create_task(_end_of_patience(process, limits))
        tasks = {probes, end, patience}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if probes.done():
                return probes.result()
            if end.done():
                raise StartError(f"the server ended with {describe_exit(end.result())}")
            raise StartError(patience.result(), why=said, fix=_BE_PATIENT)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def describe_exit(code: int) -> str:
    """An exit code in words: "signal SIGKILL" rather than -9."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


async def _end_of(process: Process) -> int:
    while (code := process.exit_code()) is None:  # noqa: ASYNC110 - only the kernel knows
        await asyncio.sleep(0.1)
    return code


async def _end_of_patience(process: Process, limits: StartLimits) -> str:
    """Wait until a limit is over; which one."""
    began = heard = time.monotonic()
    before = process.effort()
    while True:
        await asyncio.sleep(min(_TICK, limits.total / 10, limits.silence / 10))
        now, effort = time.monotonic(), process.effort()
        if effort.logged != before.logged or effort.read > before.read + _NOTABLE:
            before, heard = effort, now
        if now - began > limits.total:
            return f"the server was not ready after {limits.total:g} s"
        if now - heard > limits.silence:
            return f"the server has neither logged nor loaded anything for {limits.silence:g} s"


async def _probe(
    session: aiohttp.ClientSession, *, engine: ServedEngine, model: str, note: Callable[[str], None]
) -> tuple[str, ...]:
    async def healthy() -> bool:
        async with session.get(below(engine.endpoints.health), timeout=_PROBE) as reply:
            note(f"{engine.endpoints.health} answered {reply.status}")
            return reply.status == 200

    await _until(healthy, note=note)
    names = await _served(session, path=engine.endpoints.models)
    if model not in names:
        raise StartError(
            f"the server serves {', '.join(names) or 'nothing'}, not {model}",
            fix="check served_model_name and extra_args",
        )
    note("it is healthy, but has not answered a one-token request")
    await _canary(session, path=engine.endpoints.canary, model=model)
    if engine.endpoints.guarded is not None:
        await _demand_guard(session, path=engine.endpoints.guarded)
    return names


async def _until(probe: Callable[[], Awaitable[bool]], *, note: Callable[[str], None]) -> None:
    pause = _FIRST_PAUSE
    while True:
        try:
            if await probe():
                return
        except (aiohttp.ClientError, TimeoutError) as error:
            if not isinstance(error, aiohttp.ClientConnectorError):
                note(f"it accepts connections but does not answer ({type(error).__name__})")
        await asyncio.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)


async def _served(session: aiohttp.ClientSession, *, path: str) -> tuple[str, ...]:
    try:
        async with session.get(below(path), timeout=_PATIENT) as reply:
            body = await read_body(reply, limit=MAX_PAGE_BYTES)
    except (aiohttp.ClientError, WireError) as error:
        raise StartError(f"the server is healthy, but broke off {path}", why=str(error)) from error
    names = parse_models(body) if reply.status == 200 else None
    if names is None:
        raise StartError(
            f"the server is healthy, but {path} got {reply.status}", why=_excerpt(body)
        )
    return names


def parse_models(body: bytes) -> tuple[str, ...] | None:
    """The names in an OpenAI list of models; None if it is no such list."""
    try:
        models = msgspec.json.decode(body, type=_Models)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return tuple(card.id for card in models.data)


async def _canary(session: aiohttp.ClientSession, *, path: str, model: str) -> None:
    request: dict[str, Any] = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0.0}
    try:
        async with session.post(below(path), json=request, timeout=_PATIENT) as reply:
            body = await read_body(reply, limit=MAX_PAGE_BYTES)
    except (aiohttp.ClientError, WireError) as error:
        raise StartError(
            "the server is healthy, but broke off a one-token request", why=str(error)
        ) from error
    if reply.status != 200:
        raise StartError(
            f"the server is healthy, but a one-token request got {reply.status}", why=_excerpt(body)
        )


async def _demand_guard(session: aiohttp.ClientSession, *, path: str) -> None:
    """Raise StartError unless a request without a key is refused at a path that changes things."""
    try:
        async with session.get(path, headers={"Authorization": ""}, timeout=_PATIENT) as reply:
            status = reply.status
    except aiohttp.ClientError as error:
        raise StartError(f"the server is healthy, but broke off {path}", why=str(error)) from error
    if status != 401:
        raise StartError(
            "anyone could change this server without a key",
            why=f"{path} answered {status} without a key: the middleware that checks it is missing",
            fix="leave out what replaces vLLM's own front end; please report this version",
        )


def _excerpt(body: bytes) -> str:
    text = body.decode(errors="replace").strip()
    return text if len(text) <= 300 else f"{text[:300]}…"
