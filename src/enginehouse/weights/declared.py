"""Which weights a server is to have: what a restart brings back. Blocking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from enginehouse.store.files import write_whole


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Full weights, by their content or as they came.

    Those of the checkpoint in `path` have the `digest` of its weight files (provisioning.digests).
    Those that a trainer sent are on no disk, `path` None, and were not hashed: in place of the
    digest stands `sent-…`, which no other weights have. `version` counts the swaps since the server
    was started, 0 being what it was started with.
    """

    path: Path | None = None
    digest: str
    version: int = 0

    @property
    def name(self) -> str:
        """What the server calls them: version and digest, this in short."""
        return f"{self.version}-{self.digest if self.path is None else self.digest[:12]}"


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """`declared` are on the disk, and brought back by every restart.

    `sent`, if there are any, answer in their place until then; nothing brings them back.
    """

    declared: Weights
    sent: Weights | None = None

    @property
    def current(self) -> Weights:
        """Those that answer, unless the server was started again."""
        return self.sent or self.declared


def read_declaration(file: Path) -> Declaration | None:
    """What was declared last; None if the server has the weights it was started with."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Declaration, dec_hook=_decode)
    except FileNotFoundError:
        return None


def declare(file: Path, weights: Weights, *, sent: Weights | None = None) -> None:
    """Have `weights` brought back by every restart from now on. Raises StoreError."""
    assert weights.path is not None
    declaration = Declaration(declared=weights, sent=sent)
    write_whole(file, msgspec.json.encode(declaration, enc_hook=str))


def _decode(kind: type, value: Any) -> Any:
    return kind(value)  # Path is the one type that msgspec does not know
