"""Why an encrypted connection failed, or is required."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import aiohttp
from yarl import URL

from enginehouse.core.errors import TlsError

# OpenSSL's reasons when the reply is plain HTTP
_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}
_EXPIRED = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED
_NAME_MISMATCH = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def tls_error(error: BaseException, *, base_url: str) -> TlsError | None:
    """The error for a failed TLS handshake; None for any other failure."""
    cause = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorSSLError):
        cause = error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TlsError(
            f"the certificate of {base_url} is not accepted",
            why=cause.verify_message,
            fix=_certificate_fix(cause.verify_code),
        )
    if not isinstance(cause, ssl.SSLError):
        return None
    if cause.reason in _NOT_TLS:
        return TlsError(
            f"{base_url} does not speak TLS",
            why=str(cause),
            fix=f"use {URL(base_url).with_scheme('http')}, or the port for https",
        )
    return TlsError(
        f"the TLS handshake with {base_url} failed",
        why=str(cause),
        fix="check the port, and which TLS versions and client certificates the server requires",
    )


def https_needed(base_url: str) -> TlsError:
    """The error for plain HTTP to a server that requires TLS."""
    return TlsError(
        f"{base_url} requires TLS, and the request was plain HTTP",
        fix=f"use {URL(base_url).with_scheme('https')}",
    )


async def speaks_tls(base_url: str, *, patience: float) -> bool:
    """Whether a TLS handshake succeeds at this address, with any certificate."""
    url = URL(base_url)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent
    try:
        async with asyncio.timeout(patience):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=context)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _certificate_fix(code: int) -> str:
    if code == _EXPIRED:
        return "have the certificate renewed, or correct this machine's clock"
    if code in _NAME_MISMATCH:
        return "use the host name that is in its certificate"
    return "if you trust its authority, name that certificate's file in SSL_CERT_FILE"
