"""Digests of weights and chat templates. Blocking; a file is hashed once and remembered."""

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


class _Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """A file's digest, and what the file was like when it was hashed."""

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

    A blob of the hub's cache that is named by its SHA-256 is not read at all: the hub client has
    checked it when it was downloaded.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
        return real.name
    name = hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
    remembered_at = layout.digests / f"{name}.json"
    status = real.stat()
    like = (os.fspath(real), status.st_size, status.st_mtime_ns, status.st_ino)
    remembered = _read(remembered_at)
    if remembered and like == (
        remembered.path,
        remembered.size,
        remembered.mtime_ns,
        remembered.inode,
    ):
        return remembered.sha256
    with real.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    path_, size, mtime_ns, inode = like
    record = _Remembered(path=path_, size=size, mtime_ns=mtime_ns, inode=inode, sha256=sha256)
    with suppress(StoreError):  # remembering only spares time
        write_whole(remembered_at, msgspec.json.encode(record))
    return sha256


def weights_digest(files: Iterable[Path], *, layout: Layout) -> str:
    """One digest for a checkpoint's weight files: that of `sha256sum` over them, sorted by name.

    In a shell: `LC_ALL=C sha256sum *.safetensors | sha256sum`.
    """
    lines = [f"{file_digest(file, layout=layout)}  {file.name}\n" for file in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def chat_template_digest(folder: Path) -> ChatTemplateDigest:
    """The digest of a checkpoint's (default) chat template, wherever the checkpoint keeps it."""
    text = chat_template(folder)
    if text is None:
        return ChatTemplateDigest(digest=None, reason="the checkpoint has no chat template")
    return ChatTemplateDigest(digest=hashlib.sha256(text.encode()).hexdigest())


def chat_template(folder: Path) -> str | None:
    """A checkpoint's (default) chat template, wherever the checkpoint keeps it; None without."""
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


def _read(path: Path) -> _Remembered | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Remembered)
    except (OSError, msgspec.DecodeError):
        return None
