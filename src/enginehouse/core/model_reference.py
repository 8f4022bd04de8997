"""Parses a user's reference to a model. No I/O: nothing is looked up."""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from enginehouse.core.errors import ConfigurationError

# The hub's own rule for names (huggingface_hub.utils.validate_repo_id): up to 96 characters of
# letters, digits, "-", "_", ".", neither "--" nor "..", none of "-" and "." at either end.
_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HANDLE = re.compile(rf"(?P<owner>{_PART})/(?P<name>{_PART})(?:@(?P<revision>[^@\s]+))?")
_NAME = re.compile(_PART)


class ReferenceKind(StrEnum):
    """What a reference looks like; provisioning finds out whether it exists."""

    HANDLE = "handle"
    NAME = "name"
    PATH = "path"


class ModelReference(msgspec.Struct, frozen=True, kw_only=True):
    """A reference as it was written (`text`), and its parts if it looks like a hub handle.

    A HANDLE may also be a relative path with one slash, and a NAME (one word: a bundled model)
    a folder in the current one: an existing path wins.
    """

    text: str
    kind: ReferenceKind
    repository: str | None = None
    revision: str | None = None


def parse_model_reference(text: str) -> ModelReference:
    """`owner/name[@revision]`, a bundled model's name, or a path to a folder or a GGUF file.

    Raises ConfigurationError for anything else.
    """
    reference = text.strip()
    if not reference:
        raise ConfigurationError(
            "the model reference is empty",
            fix="use a hub handle (owner/name), a checkpoint folder, a GGUF file or smollm2",
        )
    if "://" in reference:
        parts = [part for part in reference.partition("://")[2].split("/") if part][1:3]
        raise ConfigurationError(
            f"{reference} is a URL, not a model reference",
            fix=f"use the handle alone: {'/'.join(parts) if len(parts) == 2 else 'owner/name'}",
        )
    if reference.startswith(("/", "./", "../", "~")) or reference.lower().endswith(".gguf"):
        return ModelReference(text=reference, kind=ReferenceKind.PATH)
    if match := _HANDLE.fullmatch(reference):
        return ModelReference(
            text=reference,
            kind=ReferenceKind.HANDLE,
            repository=f"{match['owner']}/{match['name']}",
            revision=match["revision"],
        )
    kind = ReferenceKind.NAME if _NAME.fullmatch(reference) else ReferenceKind.PATH
    return ModelReference(text=reference, kind=kind)
