"""The messages of enginehouse.tinker.trainers.messages, which cannot be imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from trainer.data import AdamStep, LoraSpec, LossRequest, LossResult


class Create(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="create"):
    """Make an adapter."""

    model_id: str
    spec: LoraSpec


class Compute(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="compute"):
    """Compute losses, and gradients."""

    requests: tuple[LossRequest, ...]


class OptimStep(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="optim_step"):
    """Apply the gradients."""

    model_id: str
    step: AdamStep


class DropGradients(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="drop_gradients"
):
    """Forget the gradients."""

    model_id: str


class Save(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="save"):
    """Write an adapter into a new folder."""

    model_id: str
    folder: Path
    state: bool


class Load(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="load"):
    """Read an adapter from a folder."""

    model_id: str
    folder: Path
    optimizer: bool
    gradients: bool


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="unload"):
    """Forget an adapter."""

    model_id: str


Call = Create | Compute | OptimStep | DropGradients | Save | Load | Unload


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a call, or one request of a Compute, failed, and who is to blame."""

    message: str
    category: Literal["user", "server"] = "user"
    why: str | None = None
    fix: str | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one request of a Compute gave: one of the two is there."""

    result: LossResult | None = None
    failure: Failure | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a call: its value, or why it failed."""

    value: Any = None
    failure: Failure | None = None


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data: bytearray


def encode(message: object) -> bytes:
    """A message as msgpack."""
    return msgspec.msgpack.encode(message, enc_hook=_written)


def decode_call(data: bytes) -> Call:
    """The call in a frame. Raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(data, type=Call, dec_hook=_read)


def _written(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).data
        return {"dtype": value.dtype.str, "shape": value.shape, "data": data}
    raise NotImplementedError(type(value).__name__)


def _read(kind: Any, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    tensor = msgspec.convert(value, _Tensor)
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype)).reshape(tensor.shape)
