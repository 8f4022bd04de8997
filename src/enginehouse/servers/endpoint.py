"""A server as its clients see it, and attaching to servers that we did not start."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from enginehouse.client.tls import https_needed, speaks_tls
from enginehouse.client.transport import (
    Timeouts,
    Transport,
    WireReply,
    WireRequest,
    normal_base_url,
    open_transport,
    redacted,
)
from enginehouse.core.errors import (
    ConnectionFailedError,
    MalformedResponseError,
    RequestTimeoutError,
    ServerFaultError,
    TlsError,
    UnauthorizedError,
    WireError,
)
from enginehouse.core.sampler import Capability
from enginehouse.engines.base import Engine, RemoteEngine, ServedEngine
from enginehouse.engines.registry import load_engine
from enginehouse.servers.records import ServerRecord

API_KEY_VARIABLE = "ENGINEHOUSE_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that is ready. `owned`: we started it, and will stop it.

    What a server that we did not start does not report is None. `command` has no secrets: keys are
    passed in the environment. `api_key` is what requests must carry. `admin_key` opens the
    endpoints that change the server, and is kept in `key_file` if there are any; it is None if
    `api_key` opens them.
    """

    base_url: str
    models: tuple[str, ...]
    name: str | None = None
    pid: int | None = None
    log: Path | None = None
    engine: str | None = None
    version: str | None = None
    environment: str | None = None
    command: tuple[str, ...] | None = None
    api_key: str | None = field(default=None, repr=False)
    admin_key: str | None = field(default=None, repr=False)
    key_file: Path | None = None
    owned: bool = False


def server_of(
    record: ServerRecord, *, api_key: str | None, admin_key: str | None, owned: bool = False
) -> Server:
    """The server that a record describes."""
    return Server(
        base_url=record.base_url,
        models=record.models,
        name=record.name,
        pid=record.process.pid,
        log=record.log,
        engine=record.engine,
        version=record.version,
        environment=record.environment,
        command=record.command,
        api_key=api_key,
        admin_key=admin_key,
        key_file=record.key_file,
        owned=owned,
    )


def curl_line(server: Server) -> str:
    """A shell command, ready to be copied, that sends the server a request.

    If the server has an API key, the command reads it from ENGINEHOUSE_API_KEY, and the shell
    complains if that is not set.
    """
    body: dict[str, object] = {"model": server.models[0], "max_tokens": 8}
    if server.engine is None or _takes_text(server.engine):
        path = "/v1/completions"
        body["prompt"] = "The capital of France is"
    else:
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": "What is the capital of France?"}]
    key = f"${{{API_KEY_VARIABLE}:?must hold the API key}}"
    words = [
        f"curl {shlex.quote(server.base_url + path)}",
        "-H 'Content-Type: application/json'",
        *([f'-H "Authorization: Bearer {key}"'] if server.api_key else []),
        f"-d {shlex.quote(msgspec.json.encode(body).decode())}",
    ]
    return " ".join(words)


def _takes_text(engine: str) -> bool:
    return Capability.TEXT in load_engine(engine).capabilities(None).supports


class _Version(msgspec.Struct):
    version: str


async def attach_server(
    url: str,
    *,
    engine: Engine,
    api_key: str | None = None,
    model: str | None = None,
    patience: float = 10.0,
) -> Server:
    """The server at `url` (with or without /v1), with the models and the version that it reports.

    If it lists no models, `model` is trusted; engine and version are None if it does not report
    them. Raises ConfigurationError for an invalid URL, and WireError, saying what to do, for a
    server that cannot be used or does not answer within `patience` seconds.
    """
    base = normal_base_url(url)
    wire = engine.wire
    version = None
    served = isinstance(engine, ServedEngine)
    async with open_transport(
        base,
        api_key=api_key or None,
        authorize=wire.authorize,
        timeouts=Timeouts(total=patience),
    ) as transport:
        models: tuple[str, ...] = (model,) if model else ()
        if wire.models_path is not None:
            reply = await _get(transport, wire.models_path, base=base, patience=patience)
            models = _listed(reply, base=base, engine=engine, api_key=api_key) or models
        if isinstance(engine, ServedEngine):
            reply = await _get(transport, engine.endpoints.version, base=base, patience=patience)
            version = _version(reply)
    return Server(
        base_url=base,
        models=models,
        engine=engine.name if version is not None or not served else None,
        version=version,
        api_key=api_key,
    )


def _listed(
    reply: WireReply, *, base: str, engine: Engine, api_key: str | None
) -> tuple[str, ...] | None:
    """The names that the server lists; None for a hosted API without such a list."""
    if reply.status == 200:
        with contextlib.suppress(MalformedResponseError):
            return engine.wire.decode_models(reply.body)
    if not isinstance(engine, ServedEngine):
        if reply.status in {404, 405}:
            return None
        if reply.status >= 400:
            error = engine.wire.error_reply(reply.status, reply.body, retry_after=None)
            raise redacted(error, api_key=api_key)
    raise _unusable(base, reply, api_key=api_key, engine=engine)


async def _get(transport: Transport, path: str, *, base: str, patience: float) -> WireReply:
    async def require_no_tls() -> None:
        if base.startswith("http://") and await speaks_tls(base, patience=patience):
            raise https_needed(base)

    try:
        reply = await transport.send(WireRequest("GET", path))
    except TlsError:
        raise
    except RequestTimeoutError as error:
        raise RequestTimeoutError(
            f"{base} did not answer {path} within {patience:g} s",
            fix="check address and firewall, or whether the server is still starting",
        ) from error
    except ConnectionFailedError as error:
        await require_no_tls()
        raise ConnectionFailedError(
            f"nothing answers at {base}",
            why=error.why,
            fix="check host and port; `enginehouse ps` lists the servers of this machine",
        ) from error
    except MalformedResponseError as error:
        await require_no_tls()
        raise ConnectionFailedError(
            f"what answers at {base} does not speak HTTP as expected",
            why=error.why,
            fix="check port and scheme (http or https)",
        ) from error
    if reply.status == 400:  # as some servers answer plain HTTP on a TLS port
        await require_no_tls()
    return reply


def _unusable(base: str, reply: WireReply, *, api_key: str | None, engine: Engine) -> WireError:
    status = reply.status
    if status in {401, 403}:
        return UnauthorizedError(
            f"the server at {base} refused "
            + ("the API key" if api_key else "us: it requires an API key"),
            fix=f"set {_key_variable(engine)} to its key, or name a variable with --api-key-env",
            status=status,
        )
    if status >= 500:
        return ServerFaultError(
            f"the server at {base} answered {status}", fix="look at its log", status=status
        )
    return MalformedResponseError(
        f"what answers at {base} is not an OpenAI-compatible server",
        why=f"{engine.wire.models_path} answered {status}, without a list of models",
        fix="give the address before /v1, as in http://127.0.0.1:8000",
        status=status,
    )


def _key_variable(engine: Engine) -> str:
    own = engine.key_variables if isinstance(engine, RemoteEngine) else ()
    return next(iter(own), API_KEY_VARIABLE)


def _version(reply: WireReply) -> str | None:
    if reply.status != 200:
        return None
    try:
        return msgspec.json.decode(reply.body, type=_Version).version
    except (msgspec.MsgspecError, RecursionError):
        return None
