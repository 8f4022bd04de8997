"""Which weights a server should have: what a restart brings back. Blocking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from enginehouse.store.files import write_whole


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Full weights, identified by their content or by how they arrived.

    Those of the checkpoint in `path` have the `digest` of its weight files (provisioning.digests).
    Those that a trainer sent are on no disk (`path` is None) and were not hashed: their digest is a
    unique `sent-…`. `version` counts the swaps since the server was started, from 0.
    """

    path: Path | None = None
    digest: str
    version: int = 0

    @property
    def name(self) -> str:
        """What the server calls them: version and shortened digest."""
        return f"{self.version}-{self.digest if self.path is None else self.digest[:12]}"


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """`declared` are on disk, and brought back by every restart.

    `sent`, if any, answer in their place until then, and are lost afterwards.
    """

    declared: Weights
    sent: Weights | None = None

    @property
    def current(self) -> Weights:
        """Those that answer, unless the server was restarted."""
        return self.sent or self.declared


def read_declaration(file: Path) -> Declaration | None:
    """The last declaration; None if the server has the weights it was started with."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Declaration, dec_hook=_decode)
    except FileNotFoundError:
        return None


def declare(file: Path, weights: Weights, *, sent: Weights | None = None) -> None:
    """Declare that restarts bring back `weights` from now on. Raises StoreError."""
    assert weights.path is not None
    declaration = Declaration(declared=weights, sent=sent)
    write_whole(file, msgspec.json.encode(declaration, enc_hook=str))


def _decode(kind: type, value: Any) -> Any:
    return kind(value)  # Path is the only type that msgspec does not know
