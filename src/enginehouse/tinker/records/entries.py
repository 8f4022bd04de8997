"""What is remembered, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from enginehouse.tinker.data import LoraSpec

ALIAS = "alias"
"""The key of a checkpoint's user_metadata by which its owner names it."""

UNNAMED = "unnamed-"
"""How the names of checkpoints begin that their owners gave none: snapshots for a sampler."""

CheckpointKind = Literal["training", "sampler", "external"]
FinishReason = Literal["success", "errored", "interrupted"]
Entry = TypeVar("Entry")


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Entry]):
    """A part of a list, newest first, and how many entries the whole list has."""

    entries: tuple[Entry, ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How many checkpoints there are, and what they take on the disk."""

    checkpoints: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """A client's session. All times are aware and in UTC.

    `last_heartbeat` is written with a delay of up to a minute. `finished` is None until the client
    has said that it is done, and how (`finish_reason`).
    """

    session_id: str
    user: str
    created: datetime
    last_heartbeat: datetime
    tags: tuple[str, ...] = ()
    user_metadata: Mapping[str, Any] = field(default_factory=dict)
    sdk_version: str = ""
    display_name: str | None = None
    finished: datetime | None = None
    finish_reason: FinishReason | None = None
    finish_detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A LoRA that is or was trained: the API's training run.

    `last_request` is written with a delay of up to a minute. A model that only holds a copied
    checkpoint is not `trainable`.
    """

    model_id: str
    session_id: str
    user: str
    base_model: str
    spec: LoraSpec
    created: datetime
    last_request: datetime
    user_metadata: Mapping[str, Any] = field(default_factory=dict)
    trainable: bool = True


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """A saved model.

    `folder` is relative to the store (see CheckpointStore.folder); what it holds never changes.
    `spec` is what was trained, and `unembed` says that the adapter has an output layer.
    `request_id` names the job that saved it. An expired one is `removed` when its files are gone;
    its record stays, to say so, until another is saved under its path.
    """

    path: str
    model_id: str
    user: str
    base_model: str
    kind: CheckpointKind
    name: str
    folder: str
    created: datetime
    size_bytes: int
    spec: LoraSpec
    unembed: bool
    public: bool = False
    expires_at: datetime | None = None
    removed: bool = False
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None

    @property
    def checkpoint_id(self) -> str:
        """What the API calls it within its training run, such as weights/0001."""
        return "/".join(self.path.rsplit("/", 2)[1:])


@dataclass(frozen=True, kw_only=True)
class SamplingSessionRecord:
    """A sampler: of the base model, of a checkpoint (its path), or of a model's newest weights."""

    sampling_session_id: str
    session_id: str
    user: str
    base_model: str
    created: datetime
    checkpoint: str | None = None
    follows: str | None = None
