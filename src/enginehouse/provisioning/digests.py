"""Digests of weights and chat templates. Blocking; a file is hashed only once."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.errors import StoreError
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout

_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """A file's digest, and the file's state when it was hashed."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str


class ChatTemplateDigest(msgspec.Struct, frozen=True, kw_only=True):
    """SHA-256 of the template's text, or None and the reason."""

    digest: str | None
    reason: str | None = None


def file_digest(path: Path, *, layout: Layout) -> str:
    """SHA-256 of the file's content, hashed again only if its size, time or inode changed.

    A blob in the hub's cache that is named by its SHA-256 is not read at all: the hub's client
    checked it after the download.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
        return real.name
    record_file = layout.digests / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
    status = real.stat()
    record = _Record(
        path=os.fspath(real),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        sha256="",
    )
    with suppress(OSError, msgspec.DecodeError):
        known = msgspec.json.decode(record_file.read_bytes(), type=_Record)
        if msgspec.structs.replace(known, sha256="") == record:
            return known.sha256
    with real.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    record = msgspec.structs.replace(record, sha256=sha256)
    with suppress(StoreError):  # the record only saves time
        write_whole(record_file, msgspec.json.encode(record))
    return sha256


def weights_digest(files: Iterable[Path], *, layout: Layout) -> str:
    """One digest for a checkpoint's weight files: that of `sha256sum` over them, sorted by name.

    In a shell: `LC_ALL=C sha256sum *.safetensors | sha256sum`.
    """
    lines = [f"{file_digest(file, layout=layout)}  {file.name}\n" for file in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def chat_template_digest(folder: Path) -> ChatTemplateDigest:
    """The digest of a checkpoint's (default) chat template, from any of its usual places."""
    text = chat_template(folder)
    if text is None:
        return ChatTemplateDigest(digest=None, reason="the checkpoint has no chat template")
    return ChatTemplateDigest(digest=hashlib.sha256(text.encode()).hexdigest())


def chat_template(folder: Path) -> str | None:
    """A checkpoint's (default) chat template, from any of its usual places; None without one."""
    template = folder / "chat_template.jinja"
    if template.is_file():
        return template.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        text = _default_template(_json(folder / name).get("chat_template"))
        if text is not None:
            return text
    return None


def _default_template(value: Any) -> str | None:
    """The template's text; a list has several by name, of which "default" is used."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
