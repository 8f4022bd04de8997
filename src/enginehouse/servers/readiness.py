"""When a server is ready: its process lives, it is healthy, serves the name, and answers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import aiohttp
import msgspec

from enginehouse.client.bodies import MAX_PAGE_BYTES, read_body
from enginehouse.core.errors import MalformedResponseError, StartError, WireError
from enginehouse.engines.base import ServedEngine
from enginehouse.processes.process import Process
from enginehouse.servers.sessions import below, one_token_request, open_session

_TICK = 1.0  # seconds between looks at a start's progress
_NOTABLE = 1 << 20  # bytes; a process that only waits reads a few as well
_BE_PATIENT = (
    "read the log; if the start was making progress, raise --start-timeout or --progress-timeout"
)
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.05, 0.1, 1.3
_PROBE = aiohttp.ClientTimeout(total=5)
_PATIENT = aiohttp.ClientTimeout(total=None)


class StartLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a start may take in total, and without a sign of progress."""

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

    Raises StartError as soon as the process ends, when one of the limits is exceeded (it says how
    far the server got), or when the server is up but does not work. The caller adds log and cause.
    """
    progress = "it has not answered yet"

    def note(what: str) -> None:
        nonlocal progress
        progress = what

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with open_session(base_url, headers=headers) as session:
        probes = asyncio.create_task(_probe(session, engine=engine, model=model, note=note))
        end = asyncio.create_task(_wait_for_end(process))
        limit = asyncio.create_task(_wait_for_limit(process, limits))
        tasks = {probes, end, limit}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if probes.done():
                return probes.result()
            if end.done():
                raise StartError(f"the server ended with {describe_exit(end.result())}")
            raise StartError(limit.result(), why=progress, fix=_BE_PATIENT)
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


async def _wait_for_end(process: Process) -> int:
    while (code := process.exit_code()) is None:  # noqa: ASYNC110 - only the kernel knows
        await asyncio.sleep(0.1)
    return code


async def _wait_for_limit(process: Process, limits: StartLimits) -> str:
    """Wait until a limit is exceeded; return which one."""
    began = progressed = time.monotonic()
    before = process.effort()
    while True:
        await asyncio.sleep(min(_TICK, limits.total / 10, limits.silence / 10))
        now, effort = time.monotonic(), process.effort()
        if effort.logged != before.logged or effort.read > before.read + _NOTABLE:
            before, progressed = effort, now
        if now - began > limits.total:
            return f"the server was not ready after {limits.total:g} s"
        if now - progressed > limits.silence:
            return f"the server has neither logged nor loaded anything for {limits.silence:g} s"


async def _probe(
    session: aiohttp.ClientSession, *, engine: ServedEngine, model: str, note: Callable[[str], None]
) -> tuple[str, ...]:
    """Ask until the server is healthy; then check the names that it serves, and that it works."""
    await _wait_for_health(session, path=engine.endpoints.health, note=note)
    path = engine.wire.models_path
    assert path is not None, "a server that enginehouse started lists its models"
    status, body = await _ask(session, "GET", path, what=path)
    try:
        names = engine.wire.decode_models(body) if status == 200 else None
    except MalformedResponseError:
        names = None
    if names is None and status in (404, 405) and not engine.endpoints.lists_models:
        names = (model,)
    if names is None:
        raise StartError(f"the server is healthy, but {path} answered {status}", why=_excerpt(body))
    if model not in names:
        raise StartError(
            f"the server serves {', '.join(names) or 'nothing'}, not {model}",
            fix="check served_model_name and extra_args",
        )
    note("it is healthy, but has not answered a one-token request")
    what = "a one-token request"
    request = one_token_request(engine, model)
    status, body = await _ask(session, "POST", request.path, what=what, body=request.body)
    if status != 200:
        raise StartError(
            f"the server is healthy, but {what} was answered with {status}", why=_excerpt(body)
        )
    if engine.endpoints.guarded is not None:
        path = engine.endpoints.guarded
        status, _ = await _ask(session, "GET", path, what=path, headers={"Authorization": ""})
        if status != 401:
            raise StartError(
                "anyone could change this server without a key",
                why=f"{path} answered {status} without a key: the middleware that checks it is "
                "missing",
                fix="leave out what replaces the engine's front end; a command of your own must "
                "check the key in API_KEY, or its server listen on 127.0.0.1",
            )
    return names


async def _wait_for_health(
    session: aiohttp.ClientSession, *, path: str, note: Callable[[str], None]
) -> None:
    pause = _FIRST_PAUSE
    while True:
        try:
            async with session.get(below(path), timeout=_PROBE) as reply:
                note(f"{path} answered {reply.status}")
                if reply.status == 200:
                    return
        except aiohttp.ClientConnectorError:
            pass  # it does not listen yet
        except (aiohttp.ClientError, TimeoutError) as error:
            note(f"it accepts connections but does not answer ({type(error).__name__})")
        await asyncio.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)


async def _ask(
    session: aiohttp.ClientSession,
    method: str,
    path: str,
    *,
    what: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """The reply's status and body; `body` is JSON. Raises StartError if it breaks off."""
    headers = {"Content-Type": "application/json", **(headers or {})} if body else headers
    try:
        async with session.request(
            method, below(path), data=body, headers=headers, timeout=_PATIENT
        ) as reply:
            return reply.status, await read_body(reply, limit=MAX_PAGE_BYTES)
    except (aiohttp.ClientError, WireError) as error:
        raise StartError(f"the server is healthy, but broke off {what}", why=str(error)) from error


def _excerpt(body: bytes) -> str:
    text = body.decode(errors="replace").strip()
    return text if len(text) <= 300 else f"{text[:300]}…"
