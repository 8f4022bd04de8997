from __future__ import annotations

import base64
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enginehouse.core.errors import StoreError
from enginehouse.tinker.signing import Signer


def test_what_is_signed_can_be_read():
    """For its purpose, by whoever has the secret."""
    token = Signer(b"1" * 32).sign({"path": "ä/b"}, purpose="download", seconds=60)
    claims = Signer(b"1" * 32).read(token, purpose="download")
    assert claims is not None
    assert claims["path"] == "ä/b"
    assert Signer(b"1" * 32).read(token, purpose="login") is None
    assert Signer(b"2" * 32).read(token, purpose="download") is None


def test_an_old_token_is_worth_nothing():
    """From its end on."""
    signer = Signer(b"1" * 32)
    assert signer.read(signer.sign({}, purpose="p", seconds=0), purpose="p") is None


def test_forged_tokens():
    """Changed claims, other algorithms, cut-off ones, and no tokens at all."""
    signer = Signer(b"1" * 32)
    token = signer.sign({"user": "bob"}, purpose="p", seconds=60)
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "user": "ada"}).encode()).decode()
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode()
    for each in (
        f"{head}.{forged}.{signature}",
        f"{none}.{body}.",
        f"{head}.{body}",
        token[:-1],
        "",
        "..",
        "a.b.c",
        "é.é.é",
    ):
        assert signer.read(each, purpose="p") is None


def test_the_secret_is_made_once(tmp_path: Path):
    """Services that start at the same time use the same one; only their owner may read it."""
    file = tmp_path / "home" / "secret"
    with ThreadPoolExecutor(8) as threads:
        signers = list(threads.map(Signer.open, [file] * 8))
    token = signers[0].sign({}, purpose="p", seconds=60)
    assert all(signer.read(token, purpose="p") for signer in signers)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_a_damaged_secret(tmp_path: Path):
    """An empty secret would let everybody sign."""
    (tmp_path / "secret").write_bytes(b"")
    with pytest.raises(StoreError, match="damaged"):
        Signer.open(tmp_path / "secret")
