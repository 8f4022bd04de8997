"""Flags that the hf server no longer has: none. It ignores no request field: it refuses them."""

from __future__ import annotations

from collections.abc import Mapping

REMOVED_FLAGS: Mapping[str, str] = {}
IGNORED_FIELDS: Mapping[str, str] = {}
