"""What a server is to those who ask it; and servers that are not ours: used, never stopped."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec

from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    MalformedResponseError,
    RequestTimeoutError,
    ServerFaultError,
    UnauthorizedError,
    WireError,
)
from enginehouse.engines.base import Engine
from enginehouse.servers.readiness import parse_models

API_KEY_VARIABLE = "ENGINEHOUSE_API_KEY"
_PATIENCE = 10.0
_MODELS = "/v1/models"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that is ready. `owned`: it is ours, and we stop it.

    Of a server that is not ours, what it does not tell is None. `command` has no secrets: the API
    key goes through the environment.
    """

    name: str | None
    base_url: str
    models: tuple[str, ...]
    pid: int | None
    log: Path | None
    engine: str | None
    version: str | None
    environment: str | None
    command: tuple[str, ...] | None
    api_key: str | None = field(repr=False)
    owned: bool


def curl_line(server: Server) -> str:
    """A shell command that asks the server something, to be copied as it is.

    Where the server has an API key, the command reads it from ENGINEHOUSE_API_KEY, and the shell
    says so if that is not set.
    """
    body = {"model": server.models[0], "prompt": "The capital of France is", "max_tokens": 8}
    key = f"${{{API_KEY_VARIABLE}:?must hold the API key}}"
    words = [
        f"curl {shlex.quote(server.base_url + '/v1/completions')}",
        "-H 'Content-Type: application/json'",
        *([f'-H "Authorization: Bearer {key}"'] if server.api_key else []),
        f"-d {shlex.quote(msgspec.json.encode(body).decode())}",
    ]
    return " ".join(words)


class _Reply(msgspec.Struct):
    status: int
    body: bytes


class _Version(msgspec.Struct):
    version: str


async def attach_server(
    url: str, *, api_key: str | None = None, engine: Engine | None = None
) -> Server:
    """The server at `url` (with or without /v1), asked for its models and its version.

    Its engine and version are None where it does not say. Raises ConfigurationError for what is no
    URL, and WireError, in words, for a server that cannot be used.
    """
    base = _base_url(url)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        listed = await _get(session, base, engine.models_path if engine else _MODELS)
        models = parse_models(listed.body) if listed.status == 200 else None
        if models is None:
            raise _unusable(base, listed, api_key=api_key)
        version = None
        if engine is not None:
            version = _version(await _get(session, base, engine.version_path))
    return Server(
        name=None,
        base_url=base,
        models=models,
        pid=None,
        log=None,
        engine=engine.name if engine is not None and version is not None else None,
        version=version,
        environment=None,
        command=None,
        api_key=api_key,
        owned=False,
    )


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError(
            f"{url!r} is not the URL of a server", fix="write it like http://127.0.0.1:8000"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


async def _get(session: aiohttp.ClientSession, base: str, path: str) -> _Reply:
    try:
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with session.get(base + path, timeout=timeout) as reply:
            return _Reply(status=reply.status, body=await reply.read())
    except TimeoutError as error:
        raise RequestTimeoutError(
            f"{base} did not answer {path} within {_PATIENCE:.0f} s",
            fix="check address and firewall, or whether the server is still starting",
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise ConnectionFailedError(
            f"nothing answers at {base}",
            why=str(error.os_error or error),
            fix="check host and port; `enginehouse ps` lists the servers of this machine",
        ) from error
    except aiohttp.ClientError as error:
        raise ConnectionFailedError(
            f"what answers at {base} does not speak HTTP as expected",
            why=str(error),
            fix="check port and scheme (http or https)",
        ) from error


def _unusable(base: str, reply: _Reply, *, api_key: str | None) -> WireError:
    status = reply.status
    if status in {401, 403}:
        return UnauthorizedError(
            f"the server at {base} refused "
            + ("the API key" if api_key else "us: it wants an API key"),
            fix="give its key in ENGINEHOUSE_API_KEY, or with --api-key",
            status=status,
        )
    if status >= 500:
        return ServerFaultError(
            f"the server at {base} answered {status}", fix="look at its own log", status=status
        )
    return MalformedResponseError(
        f"what answers at {base} is no OpenAI-compatible server",
        why=f"{_MODELS} answered {status}, without a list of models",
        fix="give the address before /v1, as in http://127.0.0.1:8000",
        status=status,
    )


def _version(reply: _Reply) -> str | None:
    try:
        return (
            msgspec.json.decode(reply.body, type=_Version).version if reply.status == 200 else None
        )
    except msgspec.MsgspecError:
        return None
