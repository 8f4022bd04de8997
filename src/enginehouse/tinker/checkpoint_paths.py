"""How checkpoints are named: tinker://<model_id>/<weights|sampler_weights|external_weights>/<name>."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, get_args

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.records.entries import CheckpointKind

_SCHEME: Final = "tinker://"
_SEGMENTS: Final[dict[CheckpointKind, str]] = {
    "training": "weights",
    "sampler": "sampler_weights",
    "external": "external_weights",
}
_NAME: Final = re.compile(r"(?!.*\.\.)(?!\.$)[A-Za-z0-9._-]{1,128}")
_MODEL_ID: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9_-][A-Za-z0-9._:-]{0,199}")


@dataclass(frozen=True)
class CheckpointPath:
    """A checkpoint's path in its parts, each of which is safe as the name of a file."""

    model_id: str
    kind: CheckpointKind
    name: str

    def __post_init__(self) -> None:
        """Raises TinkerError for a part that could mean something else on disk."""
        if not _MODEL_ID.fullmatch(self.model_id):
            raise TinkerError(f"{self.model_id!r} is not the id of a training run")
        if self.kind not in get_args(CheckpointKind):
            raise TinkerError(f"there is no kind of checkpoint named {self.kind!r}")
        if not _NAME.fullmatch(self.name):
            raise TinkerError(
                f"{self.name!r} cannot name a checkpoint",
                why="a name has 1 to 128 letters, digits, dots, underscores and hyphens,"
                " and no two dots in a row",
                fix="choose another name",
            )

    @classmethod
    def parse(cls, path: str) -> CheckpointPath:
        """Read a tinker:// path. Raises TinkerError (400)."""
        parts = path.removeprefix(_SCHEME).split("/")
        kinds = {segment: kind for kind, segment in _SEGMENTS.items()}
        if not path.startswith(_SCHEME) or len(parts) != 3 or parts[1] not in kinds:
            raise TinkerError(
                f"{path!r} is not the path of a checkpoint",
                why=f"it should be {_SCHEME}<training run>/<{'|'.join(kinds)}>/<name>",
            )
        return cls(parts[0], kinds[parts[1]], parts[2])

    @property
    def segment(self) -> str:
        """The kind as the path says it."""
        return _SEGMENTS[self.kind]

    def __str__(self) -> str:
        return f"{_SCHEME}{self.model_id}/{self.segment}/{self.name}"
