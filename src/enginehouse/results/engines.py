"""What each engine supports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from enginehouse.core.sampler import Capability


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One engine. `runs`: "here" if we start its servers, "elsewhere" if not.

    `tried`: what it has been tested against; None means documented, not run. `ignored`: fields that
    it would silently ignore, which are refused, and what to use instead.
    """

    name: str
    runs: Literal["here", "elsewhere"]
    tried: str | None
    model_format: str | None
    capabilities: tuple[Capability, ...]
    ignored: Mapping[str, str]
    url_variables: tuple[str, ...]
    key_variables: tuple[str, ...]
