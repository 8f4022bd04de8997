"""Encrypted connections that fail: in words, and without trying five times."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import trustme

from enginehouse.client.aiohttp_transport import AiohttpTransport
from enginehouse.client.tls import speaks_tls
from enginehouse.client.transport import WireRequest
from enginehouse.core.errors import MalformedResponseError, TlsError

from .conftest import Carrier

ASK = WireRequest("GET", "/v1/models")
Serve = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """An authority that nobody trusts."""
    return trustme.CA()


@pytest.fixture
async def serve(authority: trustme.CA) -> AsyncIterator[Serve]:
    """Starts a server, with a certificate or without; gives the host and port."""
    servers: list[asyncio.Server] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async def start(certificate: trustme.LeafCert | None) -> str:
        context = None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        servers.append(server)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # its half of each failure
    yield start
    for server in servers:
        server.close()


async def _refused(url: str) -> TlsError:
    async with AiohttpTransport(url) as transport:
        with pytest.raises(TlsError) as caught:
            await transport.send(ASK)
        with pytest.raises(TlsError):
            await transport.send(ASK, streamed=True)
    assert not caught.value.retryable
    assert url in caught.value.message
    return caught.value


async def test_an_authority_that_is_not_trusted(serve: Serve, authority: trustme.CA):
    """OpenSSL's reason, and the variable that names an authority."""
    host = await serve(authority.issue_cert("127.0.0.1"))
    error = await _refused(f"https://{host}")
    assert "issuer" in str(error.why)
    assert "SSL_CERT_FILE" in str(error.fix)


async def test_an_authority_that_the_variable_names(
    serve: Serve, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The way out that the error names is one. aiohttp makes its context once, so it is probed."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    host = await serve(authority.issue_cert("127.0.0.1"))
    context = ssl.create_default_context()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"https://{host}", ssl=context) as reply,
    ):
        assert reply.status == 200


@pytest.mark.parametrize(
    ("certificate", "why", "fix"),
    [
        ({"identities": ["example.org"]}, "not valid for", "name"),
        ({"not_after": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)}, "expired", "renewed"),
    ],
)
async def test_a_certificate_that_does_not_fit(
    serve: Serve,
    authority: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
    certificate: dict[str, object],
    why: str,
    fix: str,
):
    """The authority is trusted, but the certificate is another host's, or expired."""
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    names = certificate.pop("identities", ["127.0.0.1"])
    error = await _refused(f"https://{await serve(authority.issue_cert(*names, **certificate))}")
    assert why in str(error.why)
    assert fix in str(error.fix)


async def test_https_to_a_port_that_speaks_http(serve: Serve):
    """The address with the other scheme is named."""
    host = await serve(None)
    error = await _refused(f"https://{host}")
    assert "does not speak TLS" in error.message
    assert f"http://{host}" in str(error.fix)


async def test_whether_an_address_speaks_tls(serve: Serve, authority: trustme.CA):
    """Its certificate does not matter for that; nobody there is a no."""
    assert await speaks_tls(f"http://{await serve(authority.issue_cert('else'))}", patience=5)
    assert not await speaks_tls(f"http://{await serve(None)}", patience=5)
    assert not await speaks_tls("http://127.0.0.1:1", patience=5)


async def test_a_reply_that_is_not_http_is_no_tls_error(serve: Serve, carrier: Carrier):
    """A reply that is read and broken stays what it was."""
    servers = await asyncio.start_server(_garble, "127.0.0.1", 0)
    async with carrier(f"http://127.0.0.1:{servers.sockets[0].getsockname()[1]}") as wire:
        with pytest.raises(MalformedResponseError):
            await wire.send(ASK)
    servers.close()


async def _garble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1 << 16)
    writer.write(b"garbage\r\n\r\n")
    writer.close()
