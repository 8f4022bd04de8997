"""What each engine can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from enginehouse.core.sampler import Capability


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One engine. `runs`: "here" if we start its servers, "elsewhere" if it is only asked.

    `tried`: against what it has been tested; None is «documented, not run». `ignored`: fields that
    it would accept and silently ignore, which are refused, and what to use instead.
    """

    name: str
    runs: Literal["here", "elsewhere"]
    tried: str | None
    model_format: str | None
    capabilities: tuple[Capability, ...]
    ignored: Mapping[str, str]
    url_variables: tuple[str, ...]
    key_variables: tuple[str, ...]
