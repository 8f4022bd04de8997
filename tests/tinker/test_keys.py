from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError, StoreError
from enginehouse.tinker.keys import (
    LOCAL_USER,
    VARIABLE,
    KeyFile,
    Keys,
    is_loopback,
    list_keys,
    parse_keys,
)
from enginehouse.tinker.signing import Signer


def _keys(home: Path, *, host: str = "127.0.0.1", file: Path | None = None, **variables: str):
    return Keys.open(home, host=host, operator_file=file, environment=variables)


def test_a_key_is_stored_as_a_digest_in_a_private_file(tmp_path: Path):
    """The key itself is nowhere on disk."""
    file = KeyFile(tmp_path / "home" / "keys.json")
    key = file.add("ada", note="laptop")
    assert key.startswith("tml-")
    assert len(key) == len("tml-") + 43  # 32 bytes in base64
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    for written in file.path.parent.iterdir():
        assert key.encode() not in written.read_bytes()
        assert key.removeprefix("tml-").encode() not in written.read_bytes()
    (stored,) = file.read()
    assert (stored.user, stored.note) == ("ada", "laptop")
    assert file.add("ada") != key


def test_a_running_service_follows_its_files(tmp_path: Path):
    """Keys that are added and revoked count from the next request on."""
    file = KeyFile(tmp_path / "keys.json")
    ada = file.add("ada")
    keys = _keys(tmp_path, host="0.0.0.0")
    assert keys.authenticate(ada) == "ada"
    bob = file.add("bob")
    assert keys.authenticate(bob) == "bob"
    known = keys.identify(ada)
    assert known is not None
    assert file.revoke(known.key_id).user == "ada"
    assert keys.authenticate(ada) is None
    assert keys.authenticate(bob) == "bob"


@pytest.mark.parametrize("key", [None, "", "tml-", "tml-wrong", "wrong", "eyJhbGciOi.eyJ.sig", "é"])
def test_wrong_keys(tmp_path: Path, key: str | None):
    """They are nobody's."""
    KeyFile(tmp_path / "keys.json").add("ada")
    assert _keys(tmp_path).authenticate(key) is None


def test_without_keys_only_this_machine_may_connect(tmp_path: Path):
    """There, everybody is the local user; on another host the service refuses to start."""
    keys = _keys(tmp_path)
    assert keys.authenticate("tml-anything") == LOCAL_USER
    assert keys.authenticate(None) == LOCAL_USER
    with pytest.raises(ConfigurationError, match="API keys") as refused:
        _keys(tmp_path, host="0.0.0.0")
    assert "enginehouse tinker keys add" in str(refused.value)


def test_access_never_opens_again(tmp_path: Path):
    """Neither by revoking the last key, nor by deleting the file under a running service."""
    file = KeyFile(tmp_path / "keys.json")
    keys = _keys(tmp_path)
    assert keys.authenticate("tml-any") == LOCAL_USER
    ada = file.add("ada")
    assert keys.authenticate("tml-any") is None
    assert keys.authenticate(ada) == "ada"
    file.revoke(file.read()[0].key_id)
    assert keys.authenticate(ada) is None
    assert keys.authenticate("tml-any") is None
    assert _keys(tmp_path).authenticate("tml-any") is None
    file.path.unlink()
    assert keys.authenticate("tml-any") is None


def test_keys_of_the_operator(tmp_path: Path):
    """From a file and from the variable, in plain or as digests; the file is followed, too."""
    hashed = KeyFile(tmp_path / "other.json")
    cleo = hashed.add("cleo")
    file = tmp_path / "keys.txt"
    file.write_text(f"# people\n\n ada = tml-ada-key \ncleo=sha256:{hashed.read()[0].sha256}\n")
    keys = _keys(tmp_path, host="0.0.0.0", file=file, **{VARIABLE: "bob=tml-1,dora=tml-2"})
    users = [keys.authenticate(key) for key in ("tml-ada-key", cleo, "tml-1", "tml-2")]
    assert users == ["ada", "cleo", "bob", "dora"]
    listed = list_keys(tmp_path, operator_file=file, environment={VARIABLE: "bob=tml-1,dora=tml-2"})
    assert sorted((each.key.user, each.place) for each in listed) == [
        ("ada", str(file)),
        ("bob", VARIABLE),
        ("cleo", str(file)),
        ("dora", VARIABLE),
    ]
    file.write_text("ada=tml-new-key\n")
    assert keys.authenticate("tml-ada-key") is None
    assert keys.authenticate("tml-new-key") == "ada"


def test_a_damaged_file_under_a_running_service(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The keys from before stay valid, the log says so once, and no key is in it."""
    file = tmp_path / "keys.txt"
    file.write_text("ada=tml-ada-key\n")
    keys = _keys(tmp_path, file=file)
    file.write_text("ada=hunter2\n")
    with caplog.at_level(logging.ERROR):
        assert keys.authenticate("tml-ada-key") == "ada"
        assert keys.authenticate("tml-ada-key") == "ada"
    (record,) = caplog.records
    assert f"line 1 of {file}" in record.getMessage()
    assert "hunter2" not in record.getMessage()


@pytest.mark.parametrize(
    "line",
    ["ada", "ada=hunter2", "ada=tml-", "=tml-x", "a b=tml-x", "ada=sha256:hunter2", "../x=tml-x"],
)
def test_wrong_lines(line: str):
    """Refused with their number, and without the key."""
    with pytest.raises(ConfigurationError, match=r"line 2.* here") as refused:
        parse_keys(f"# first\n{line}\n", place="here")
    assert "hunter2" not in str(refused.value)


def test_a_damaged_keys_json_is_not_ignored(tmp_path: Path):
    """A service that starts with it would let nobody in, or everybody."""
    (tmp_path / "keys.json").write_text('{"version": 2, "keys": []}')
    with pytest.raises(StoreError, match=r"keys\.json"):
        _keys(tmp_path)


def test_revoking_what_is_not_there(tmp_path: Path):
    """The message says where other keys are revoked."""
    with pytest.raises(ConfigurationError, match=VARIABLE):
        KeyFile(tmp_path / "keys.json").revoke("01234567")


def test_a_login_stands_for_its_key(tmp_path: Path):
    """Until the key is revoked; its claims are those that the SDK reads."""
    from base64 import urlsafe_b64decode

    file = KeyFile(tmp_path / "keys.json")
    ada, bob = file.add("ada@example.org"), file.add("bob")
    keys = _keys(tmp_path)
    login = keys.log_in(ada)
    assert login is not None
    claims = json.loads(urlsafe_b64decode(login.split(".")[1] + "=="))
    assert (claims["sub"], claims["email"]) == ("tml:user:ada@example.org", "ada@example.org")
    assert claims["exp"] - claims["iat"] == 3600
    assert keys.authenticate(login) == "ada@example.org"
    assert _keys(tmp_path).authenticate(login) == "ada@example.org"  # after a restart
    assert keys.log_in("tml-wrong") is None
    assert keys.authenticate(keys.log_in(bob)) == "bob"
    file.revoke(file.read()[0].key_id)
    assert keys.authenticate(login) is None


def test_a_login_while_everybody_is_local(tmp_path: Path):
    """It is worth nothing once there are keys."""
    keys = _keys(tmp_path)
    login = keys.log_in("tml-any")
    assert keys.authenticate(login) == LOCAL_USER
    KeyFile(tmp_path / "keys.json").add("ada")
    assert keys.authenticate(login) is None


def test_a_token_for_something_else_is_no_login(tmp_path: Path):
    """Whoever has a download link cannot log in with it."""
    file = KeyFile(tmp_path / "keys.json")
    file.add("ada")
    keys = _keys(tmp_path)
    token = Signer.open(tmp_path / "secret").sign(
        {"key": file.read()[0].sha256}, purpose="download", seconds=60
    )
    assert keys.authenticate(token) is None


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_loopback(host: str, *, loopback: bool):
    """A name that is not localhost may be any machine's."""
    assert is_loopback(host) == loopback
