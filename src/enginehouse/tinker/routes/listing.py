"""What lists of the API have in common: pages, projects, and how records are told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.records.entries import CheckpointRecord

PROJECT: Final = "default"
"""The one project there is: the SDK has no answer for none."""


class NoQuery(StrictModel):
    """The route has no parameters: one that is given is refused, not ignored."""


class PageQuery(StrictModel):
    """Which part of a list is asked for, and whether of one's own or of all that may be seen."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    offset: Annotated[int, Field(ge=0)] = 0
    access_scope: Literal["owned", "accessible"] = "owned"
    project_id: str | None = None

    def cursor(self, total: int) -> dict[str, int]:
        """What the SDK pages with."""
        return {"offset": self.offset, "limit": self.limit, "total_count": total}


def require_project(project_id: str | None) -> None:
    """Raise TinkerError (404) for any project but the one there is."""
    if project_id not in (None, PROJECT):
        raise TinkerError(
            f"there is no project {project_id}",
            why="this service has no projects: everything is in one",
            fix=f"leave the project out, or name it {PROJECT!r}",
            status=404,
        )


def checkpoint_answer(record: CheckpointRecord) -> dict[str, Any]:
    """A checkpoint as the API tells it."""
    return {
        "checkpoint_id": record.checkpoint_id,
        "checkpoint_type": record.kind,
        "time": record.created,
        "tinker_path": record.path,
        "size_bytes": record.size_bytes,
        "public": record.public,
        "user_metadata": texts(record.user_metadata) or None,
        "expires_at": record.expires_at,
    }


def texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as the SDK reads it back: it takes any values, and returns only strings."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }


def user_urn(user: str) -> str:
    """A user as the API names users."""
    return f"tml:user:{user}"
