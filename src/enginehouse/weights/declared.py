"""Which weights a server is to have: what a restart brings back. Blocking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from enginehouse.store.files import write_whole


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint in `path`, by its content.

    `digest` is that of its weight files (provisioning.digests); `version` counts the swaps since
    the server was started, 0 being what it was started with.
    """

    path: Path
    digest: str
    version: int = 0

    @property
    def name(self) -> str:
        """What the server calls them: version and digest in short."""
        return f"{self.version}-{self.digest[:12]}"


def read_declared(file: Path) -> Weights | None:
    """The weights that were declared last; None if the server has those it was started with."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Weights, dec_hook=_decode)
    except FileNotFoundError:
        return None


def declare(file: Path, weights: Weights) -> None:
    """Have `weights` brought back by every restart from now on. Raises StoreError."""
    write_whole(file, msgspec.json.encode(weights, enc_hook=str))


def _decode(kind: type, value: Any) -> Any:
    return kind(value)  # Path is the one type that msgspec does not know
