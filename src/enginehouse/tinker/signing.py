"""Statements that only this service can have made: JSON Web Tokens, signed with HMAC-SHA256."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from enginehouse.core.errors import StoreError
from enginehouse.store.private import open_private

_HEADER: Final = {"alg": "HS256", "typ": "JWT"}
_BYTES: Final = 32


class Signer:
    """Makes and reads tokens. Each has a `purpose`, and is worth nothing for another one."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def open(cls, file: Path) -> Signer:
        """Use the secret in a private file, which is made if it is missing. Raises StoreError."""
        try:
            if not file.exists():
                _make_secret(file)
            secret = file.read_bytes()
        except OSError as error:
            raise StoreError(
                f"cannot use the service's secret {file}", why=error.strerror or str(error)
            ) from error
        if len(secret) != _BYTES:
            raise StoreError(
                f"{file} is damaged", fix="delete it: links and logins made before become invalid"
            )
        return cls(secret)

    def sign(self, claims: Mapping[str, Any], *, purpose: str, seconds: float) -> str:
        """A token that says `claims`, and is valid for so many seconds."""
        now = int(time.time())
        content = {**claims, "aud": purpose, "iat": now, "exp": now + int(seconds)}
        body = f"{_encode(_HEADER)}.{_encode(content)}"
        return f"{body}.{self._signature(body)}"

    def read(self, token: str, *, purpose: str) -> Mapping[str, Any] | None:
        """What a token says, or None if it is not ours, not for this purpose, or too old."""
        body, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._signature(body).encode(), signature.encode()):
            return None
        try:
            claims = json.loads(_decode(body.partition(".")[2]))
        except (ValueError, binascii.Error):
            return None
        if claims.get("aud") != purpose or claims.get("exp", 0) <= time.time():
            return None
        return dict(claims)

    def _signature(self, body: str) -> str:
        digest = hmac.new(self._secret, body.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _encode(value: object) -> str:
    content = json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _make_secret(file: Path) -> None:
    """Two services that start at once agree on one: the first file that is linked stays."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_private(temporary, os.O_WRONLY | os.O_EXCL), "wb") as opened:
        opened.write(secrets.token_bytes(_BYTES))
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
