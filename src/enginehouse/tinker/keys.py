"""Who may use the service: API keys, and the users that they belong to.

A key is 32 random bytes, so nobody can guess it, however cheap a guess is. That is why a plain
SHA-256 is enough to store it by: slow and salted hashes protect passwords, which people choose.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec
from filelock import FileLock

from enginehouse.core.errors import ConfigurationError, StoreError
from enginehouse.core.system_errors import advice
from enginehouse.store.files import require_folder, write_whole
from enginehouse.store.private import make_private
from enginehouse.tinker.signing import Signer

VARIABLE: Final = "ENGINEHOUSE_TINKER_KEYS"
KEYS: Final = "keys.json"
"""The file in a service's home with the keys that were added."""
LOCAL_USER: Final = "local"
ORGANISATION: Final = "enginehouse"
_PREFIX: Final = "tml-"  # the SDK accepts no other
_USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LOGIN: Final = "login"  # the purpose of a token that stands for a key
_LOGIN_SECONDS: Final = 3600.0
_log = logging.getLogger(__name__)


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a key; never the key itself. `created` is None for an operator's own."""

    user: str
    sha256: str
    created: datetime | None = None
    note: str = ""

    @property
    def key_id(self) -> str:
        """What people call it: the beginning of its digest, 8 hexadecimal digits."""
        return self.sha256[:8]


@dataclass(frozen=True, kw_only=True)
class ListedKey:
    """A key, and the file or the variable that it comes from."""

    key: Key
    place: str


class _Stored(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1] = 1
    keys: list[Key] = []


class KeyFile:
    """The keys that `enginehouse tinker keys` has made, in a private file. Blocking."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether a key was ever added; revoking the last one does not delete the file."""
        return self.path.exists()

    def read(self) -> list[Key]:
        """All keys, oldest first. Raises StoreError."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Stored).keys
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(
                f"cannot read the keys in {self.path}",
                why=str(error),
                fix=advice(error, otherwise="restore it from a copy, or delete it and add keys"),
            ) from error

    def add(self, user: str, *, note: str = "") -> str:
        """Make a key for a user, and return it; it is not stored, and cannot be shown again.

        Raises ConfigurationError for a name that cannot be a user's, and StoreError.
        """
        _require_user(user, place="the user")
        with self._lock():
            keys = self.read()
            taken = {key.key_id for key in keys}
            while True:
                secret = _PREFIX + secrets.token_urlsafe(32)
                key = Key(user=user, sha256=_digest(secret), created=datetime.now(UTC), note=note)
                if key.key_id not in taken:
                    break
            self._write([*keys, key])
        return secret

    def revoke(self, key_id: str) -> Key:
        """Forget a key; a running service refuses it from its next request on.

        Raises ConfigurationError if there is none of that id, and StoreError.
        """
        with self._lock():
            keys = self.read()
            revoked = [key for key in keys if key.key_id == key_id]
            if not revoked:
                raise ConfigurationError(
                    f"there is no key {key_id} in {self.path}",
                    fix="`enginehouse tinker keys list` shows the keys; those of a key file or of"
                    f" {VARIABLE} are revoked by removing their lines",
                )
            self._write([key for key in keys if key.key_id != key_id])
        return revoked[0]

    def _lock(self) -> FileLock:
        require_folder(self.path.parent)
        make_private(self.path.parent)
        return FileLock(f"{self.path}.lock", timeout=10)

    def _write(self, keys: list[Key]) -> None:
        content = msgspec.json.format(msgspec.json.encode(_Stored(keys=keys)), indent=2)
        write_whole(self.path, content + b"\n", private=True)


class Keys:
    """Which user a request comes from.

    Keys come from keys.json of the service's home, from a file of the operator's, and from
    ENGINEHOUSE_TINKER_KEYS. Files are read again when they have changed; if one cannot be read
    then, the keys from before stay valid. Where no key was ever configured, and only this machine
    can connect, everybody is the user "local", whatever key they send.
    """

    def __init__(
        self,
        file: KeyFile,
        *,
        signer: Signer,
        operator_file: Path | None = None,
        from_variable: Sequence[Key] = (),
        loopback: bool = True,
    ) -> None:
        self._file = file
        self.signer = signer
        """What the service signs logins and links with."""
        self._operator_file = operator_file
        self._from_variable = from_variable
        self._states: list[tuple[int, int, int] | None] = []
        self._keys: dict[str, list[Key]] = {}  # by id
        self._open_to_all = loopback  # until a key is configured, and never again after that
        self._load()

    @classmethod
    def open(
        cls,
        home: Path,
        *,
        host: str,
        operator_file: Path | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Keys:
        """The keys of a service that listens on `host`.

        Raises ConfigurationError for a host that other machines reach while there is no key, and
        for keys that cannot be read; StoreError for a damaged keys.json.
        """
        keys = cls(
            KeyFile(home / KEYS),
            signer=Signer.open(home / "secret"),
            operator_file=operator_file,
            from_variable=_variable_keys(environment),
            loopback=is_loopback(host),
        )
        if not keys._keys and not is_loopback(host):
            raise ConfigurationError(
                f"a service on {host} needs API keys",
                why="other machines can reach it, and there is no key yet",
                fix="`enginehouse tinker keys add USER` makes one; or listen on 127.0.0.1",
            )
        return keys

    def authenticate(self, key: str | None) -> str | None:
        """The user whose key, or login, this is; None if it is nobody's."""
        self._reload()
        if self._open_to_all:
            return LOCAL_USER
        known = self.identify(key)
        return known.user if known else None

    def identify(self, key: str | None) -> Key | None:
        """What is known of the key, or of the one that a login stands for."""
        self._reload()
        if not key:
            return None
        if not key.startswith(_PREFIX):
            claims = self.signer.read(key, purpose=_LOGIN)
            return self._find(claims["key"]) if claims else None
        return self._find(_digest(key))

    def log_in(self, key: str | None) -> str | None:
        """A token that stands for the key for an hour, unless the key is revoked before.

        It is a JSON Web Token with what the SDK reads from it: sub, org_id and email.
        """
        user = self.authenticate(key)
        if user is None:
            return None
        known = self.identify(key)
        claims = {
            "iss": ORGANISATION,
            "sub": f"tml:user:{user}",
            "org_id": ORGANISATION,
            "email": user if "@" in user else None,
            "key": known.sha256 if known else "",
        }
        return self.signer.sign(claims, purpose=_LOGIN, seconds=_LOGIN_SECONDS)

    def revoke(self, key: Key) -> None:
        """Revoke a key for its owner. Raises ConfigurationError if it is not in keys.json."""
        self._file.revoke(key.key_id)

    def _reload(self) -> None:
        if self._states == self._current_states():
            return
        try:
            self._load()
        except (StoreError, ConfigurationError) as error:
            self._states = self._current_states()
            _log.error("the previous keys stay valid: %s", error)
        else:
            _log.info("reloaded the API keys: %d", len(self._keys))

    def _load(self) -> None:
        states = self._current_states()
        keys = [*self._from_variable, *self._file.read()]
        if self._operator_file:
            keys += read_operator_file(self._operator_file)
        self._keys = {}
        for key in keys:
            self._keys.setdefault(key.key_id, []).append(key)
        if keys or self._file.exists or self._operator_file:
            self._open_to_all = False
        self._states = states

    def _find(self, digest: str) -> Key | None:
        for key in self._keys.get(digest[:8], []):
            if hmac.compare_digest(key.sha256, digest):
                return key
        return None

    def _current_states(self) -> list[tuple[int, int, int] | None]:
        files = [self._file.path, *([self._operator_file] if self._operator_file else [])]
        return [_state(file) for file in files]


def list_keys(
    home: Path,
    *,
    operator_file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[ListedKey]:
    """Every key that a service with this home accepts. Raises ConfigurationError and StoreError."""
    file = KeyFile(home / KEYS)
    places = {str(file.path): file.read(), VARIABLE: _variable_keys(environment)}
    if operator_file:
        places[str(operator_file)] = read_operator_file(operator_file)
    return [ListedKey(key=key, place=place) for place, keys in places.items() for key in keys]


def read_operator_file(path: Path) -> list[Key]:
    """The keys in a file of the operator's: see parse_keys. Raises ConfigurationError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the keys in {path}", why=str(error)) from error
    return parse_keys(text, place=str(path))


def _variable_keys(environment: Mapping[str, str]) -> list[Key]:
    """Lines, or the same with commas between them."""
    return parse_keys(environment.get(VARIABLE, "").replace(",", "\n"), place=VARIABLE)


def parse_keys(text: str, *, place: str) -> list[Key]:
    """Keys from lines `user=key`, or `user=sha256:DIGEST`; blank lines and # comments are skipped.

    Raises ConfigurationError, which names the line and never shows a key.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        user, equals, key = (part.strip() for part in entry.partition("="))
        here = f"line {number} of {place}"
        if not equals:
            raise ConfigurationError(f"{here} is not user=key")
        _require_user(user, place=here)
        digest = key.removeprefix("sha256:")
        if digest == key:
            if not key.startswith(_PREFIX) or len(key) == len(_PREFIX):
                raise ConfigurationError(
                    f"{here}: the key of {user} does not begin with {_PREFIX}",
                    why="the Tinker SDK refuses such keys",
                )
            digest = _digest(key)
        elif not _DIGEST.fullmatch(digest):
            raise ConfigurationError(f"{here}: the SHA-256 of {user} is not 64 hexadecimal digits")
        keys.append(Key(user=user, sha256=digest))
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _require_user(user: str, *, place: str) -> None:
    if not _USER.fullmatch(user):
        raise ConfigurationError(
            f"{place}: {user!r} cannot name a user",
            why="a name has letters, digits and . _ - + @, and begins with a letter or digit",
        )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _state(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
