"""What is said between the service and a trainer that runs elsewhere: msgpack, without pickles.

A call is a map of its fields, with its name as `call`; the answer is a Reply. A tensor is a map of
numpy's name for its type ("<f4"), its shape, and its values as bytes in C order. payloads/trainer
has the same messages; docs/tinker-megatron.md describes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.data import AdamStep, LoraSpec, LossRequest, LossResult


class Create(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="create"):
    """Answered with nothing."""

    model_id: str
    spec: LoraSpec


class Compute(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="compute"):
    """Answered with an Outcome for each request."""

    requests: tuple[LossRequest, ...]


class OptimStep(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="optim_step"):
    """Answered with the metrics."""

    model_id: str
    step: AdamStep


class DropGradients(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="drop_gradients"
):
    """Answered with nothing."""

    model_id: str


class Save(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="save"):
    """Answered with nothing once the folder is there."""

    model_id: str
    folder: Path
    state: bool


class Load(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="load"):
    """Answered with the adapter's LoraSpec."""

    model_id: str
    folder: Path
    optimizer: bool
    gradients: bool


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="unload"):
    """Answered with nothing."""

    model_id: str


Call = Create | Compute | OptimStep | DropGradients | Save | Load | Unload


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a call, or one request of a Compute, failed, and who is to blame."""

    message: str
    category: Literal["user", "server"] = "user"
    why: str | None = None
    fix: str | None = None

    def error(self) -> TinkerError:
        """What the service raises for it."""
        status = 400 if self.category == "user" else 500
        return TinkerError(
            self.message, category=self.category, status=status, why=self.why, fix=self.fix
        )


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one request of a Compute gave: one of the two is there."""

    result: LossResult | None = None
    failure: Failure | None = None

    def value(self) -> LossResult | TinkerError:
        """What the service takes for it."""
        if self.result is not None:
            return self.result
        return (
            self.failure or Failure(message="the trainer returned nothing", category="server")
        ).error()


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a call: its value, or why it failed."""

    value: msgspec.Raw = msgspec.Raw(b"\xc0")  # nil
    failure: Failure | None = None


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data: bytearray


def encode(message: object) -> bytes:
    """A message as msgpack."""
    return msgspec.msgpack.encode(message, enc_hook=_written)


def decode(data: bytes | msgspec.Raw, *, kind: Any) -> Any:
    """A message of that type. Raises msgspec.MsgspecError, or ValueError for a broken tensor."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_read)


def _written(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).data
        return {"dtype": value.dtype.str, "shape": value.shape, "data": data}
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def _read(kind: Any, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    tensor = msgspec.convert(value, _Tensor)
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype)).reshape(tensor.shape)
