from __future__ import annotations

import os
import socket
import ssl
import subprocess

import aiohttp.web
import msgspec
import pytest
import trustme

from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    MalformedResponseError,
    RequestTimeoutError,
    ServerFaultError,
    TlsError,
    UnauthorizedError,
)
from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.engines.anthropic.engine import AnthropicEngine
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.servers.endpoint import Server, attach_server, curl_line

ENGINE = VllmEngine()


@pytest.fixture
async def web():
    """Serve given replies, path → (status, body), on loopback; gives the base URL."""
    runners = []

    async def serve(replies, *, location=None, asked=None):
        async def answer(request):
            if asked is not None:
                asked.append(request.path)
            status, body = replies.get(request.path, (404, "no"))
            headers = {"Location": location} if location else None
            return aiohttp.web.Response(status=status, text=body, headers=headers)

        app = aiohttp.web.Application()
        app.router.add_route("*", "/{rest:.*}", answer)
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield serve
    for runner in runners:
        await runner.cleanup()


async def test_models_and_version_are_asked(web):
    """What the server tells is known, the rest is None, and it is not ours."""
    url = await web(
        {
            "/v1/models": (200, '{"data": [{"id": "a"}, {"id": "b"}]}'),
            "/version": (200, '{"version": "0.9"}'),
        }
    )
    for written in (url, f"{url}/", f"{url}/v1", f"{url}/v1/"):
        server = await attach_server(written, api_key="k", engine=ENGINE)
        assert (server.base_url, server.models) == (url, ("a", "b"))
        assert (server.engine, server.version, server.api_key) == ("vllm", "0.9", "k")
        assert (server.owned, server.pid, server.log, server.command) == (False, None, None, None)


async def test_a_server_that_tells_no_version(web):
    """Without /version, engine and version are unknown, not guessed."""
    url = await web({"/v1/models": (200, '{"data": [{"id": "a"}]}')})
    server = await attach_server(url, engine=ENGINE)
    assert (server.engine, server.version) == (None, None)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        ((401, "{}"), UnauthorizedError, "wants an API key"),
        ((503, "x"), ServerFaultError, "answered 503"),
        ((404, "x"), MalformedResponseError, "OpenAI-compatible server"),
        ((200, "<html>"), MalformedResponseError, "OpenAI-compatible server"),
    ],
)
async def test_a_wrong_server_is_told_in_words(web, reply, kind, message):
    """Each way in which a URL is wrong has its own error and advice."""
    url = await web({"/v1/models": reply})
    with pytest.raises(kind, match=message) as caught:
        await attach_server(url, engine=ENGINE)
    assert caught.value.fix


async def test_a_key_goes_to_nobody_else(web):
    """A redirection is not followed: Anthropic's header would go along."""
    asked = []
    thief = await web({"/": (200, '{"data": [{"id": "a"}]}')}, asked=asked)
    url = await web({"/v1/models": (302, "")}, location=thief.replace("127.0.0.1", "localhost"))
    with pytest.raises(MalformedResponseError, match="OpenAI-compatible server"):
        await attach_server(url, api_key="sk-secret", engine=AnthropicEngine(), model="m")
    assert asked == []


async def test_a_key_with_a_newline_is_refused_in_words():
    """As a file that ends in one leaves it in the variable."""
    with pytest.raises(ConfigurationError, match="white space"):
        await attach_server("http://127.0.0.1:1", api_key="sk-secret\n", engine=ENGINE)


async def test_a_wrong_key_is_told_from_a_missing_one(web):
    """With a key given, the key is what the server refused."""
    url = await web({"/v1/models": (403, "{}")})
    with pytest.raises(UnauthorizedError, match="API key"):
        await attach_server(url, api_key="bad", engine=ENGINE)


async def test_nothing_there():
    """A closed port is a failed connection, with the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConnectionFailedError, match=f"http://127.0.0.1:{port}"):
        await attach_server(f"http://127.0.0.1:{port}", engine=ENGINE)


async def test_plain_http_to_a_port_that_speaks_tls():
    """A server with TLS just hangs up: it is asked for a handshake, and https is named."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    runner = aiohttp.web.AppRunner(aiohttp.web.Application())
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    with pytest.raises(TlsError) as caught:
        await attach_server(url, engine=ENGINE)
    assert caught.value.fix == f"use {url.replace('http', 'https')}"
    await runner.cleanup()


async def test_a_refusal_in_plain_http_is_not_taken_for_tls(web):
    """Some servers answer 400 on a TLS port; one that speaks HTTP may answer 400, too."""
    with pytest.raises(MalformedResponseError):
        await attach_server(await web({"/v1/models": (400, "no")}), engine=ENGINE)


async def test_silence_is_a_timeout():
    """A port that accepts and never answers does not hang us."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RequestTimeoutError, match="/v1/models"):
            await attach_server(url, engine=ENGINE, patience=0.2)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "", "127.0.0.1"])
async def test_what_is_no_url(url):
    """A URL without scheme or host is refused with an example, before any connection."""
    with pytest.raises(ConfigurationError) as caught:
        await attach_server(url, engine=ENGINE)
    assert "http://" in caught.value.fix


def made(**changes: object) -> Server:
    """A server, not ours, with some fields changed."""
    fields = {
        "name": None,
        "base_url": "http://127.0.0.1:9",
        "models": ("it's a model",),
        "pid": None,
        "log": None,
        "engine": None,
        "version": None,
        "environment": None,
        "command": None,
        "api_key": None,
        "owned": False,
    }
    return Server(**fields | changes)


def run(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell where `curl` prints its arguments, one a line."""
    shell = 'curl() { printf "%s\\n" "$@"; }\n' + line
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["/bin/sh", "-c", shell], capture_output=True, text=True, env=path | env, check=False
    )


def test_curl_line_survives_the_shell():
    """Quotes in a model's name reach the server as they are."""
    words = run(curl_line(made())).stdout.splitlines()
    assert words[0] == "http://127.0.0.1:9/v1/completions"
    assert msgspec.json.decode(words[-1])["model"] == "it's a model"
    assert "Authorization" not in " ".join(words)


def test_curl_line_is_a_chat_for_an_engine_without_text(monkeypatch):
    """A request that its server would answer."""
    assert "/v1/completions" in curl_line(made(engine="vllm"))
    capabilities = Capabilities(supports=frozenset({Capability.CHAT}))
    monkeypatch.setattr(VllmEngine, "capabilities", lambda *_: capabilities)
    words = run(curl_line(made(engine="vllm"))).stdout.splitlines()
    assert words[0] == "http://127.0.0.1:9/v1/chat/completions"
    assert msgspec.json.decode(words[-1])["messages"]


def test_curl_line_has_the_keys_variable_and_not_the_key():
    """The key is read from a variable, and the shell says so when it is not set."""
    server = made(api_key="s3cret")
    line = curl_line(server)
    assert "s3cret" not in line + repr(server)
    assert "Authorization: Bearer abc" in run(line, ENGINEHOUSE_API_KEY="abc").stdout
    assert "must hold the API key" in run(line).stderr
