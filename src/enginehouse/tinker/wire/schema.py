"""The SDK's own protobuf messages, without the SDK."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError, TinkerError

PROTOBUF = "application/x-protobuf"


@cache
def messages() -> Any:
    """The module tinker.proto.tinker_public_pb2, loaded by its path.

    Importing the package `tinker` would take a second and start telemetry code. Raises
    ConfigurationError if the extra is not installed.
    """
    package = importlib.util.find_spec("tinker")
    folders = package.submodule_search_locations if package is not None else None
    path = Path(folders[0]) / "proto" / "tinker_public_pb2.py" if folders else None
    try:
        if path is None or not path.is_file():
            raise ModuleNotFoundError("the package tinker is not installed")
        spec = importlib.util.spec_from_file_location("enginehouse_tinker_public_pb2", path)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"{path} is not a module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ConfigurationError(
            "the Tinker service needs packages that are not installed",
            why=str(error),
            fix='install them with: uv pip install "enginehouse[tinker]"',
        ) from error
    return module


def parse(message_type: Any, body: bytes) -> Any:
    """`body` as a message of that type. Raises TinkerError (400) if it is not one."""
    from google.protobuf.message import DecodeError

    try:
        return message_type.FromString(body)
    except DecodeError as error:
        raise TinkerError(
            f"the body is not a protobuf {message_type.DESCRIPTOR.name}",
            why=str(error),
            fix="use the tinker SDK 0.38.0, and check that no proxy changes the body",
        ) from error


_RENUMBERED = "sampling_session_seq_id"
"""What the SDK counts on when it sends a save for its own sampler again, under the same seq_id."""


def same_content(one: bytes, other: bytes, *, content_type: str) -> bool:
    """Whether two bodies say the same, although the order of their fields may differ.

    A save that the SDK sends again is the same one: its answer names the first sampling session.
    """
    from google.protobuf.message import DecodeError

    try:
        if content_type == PROTOBUF:
            message_type = messages().ForwardBackwardRequest
            ordered = [
                message_type.FromString(body).SerializeToString(deterministic=True)
                for body in (one, other)
            ]
            return bool(ordered[0] == ordered[1])
        said = [msgspec.json.decode(body) for body in (one, other)]
        for content in said:
            if isinstance(content, dict):
                content.pop(_RENUMBERED, None)
        return bool(said[0] == said[1])
    except (DecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def require_known_fields(message: Any, where: str) -> None:
    """Raise TinkerError if the message has fields that this version of the schema lacks.

    Only its own fields are looked at, not those of the messages in it.
    """
    from google.protobuf.unknown_fields import UnknownFieldSet

    numbers = sorted({field.field_number for field in UnknownFieldSet(message)})
    if numbers:
        raise TinkerError(
            f"{where}: {message.DESCRIPTOR.name} has fields this service does not know: "
            f"number {', '.join(map(str, numbers))}",
            fix="use the tinker SDK 0.38.0, or a newer release of this service",
        )
