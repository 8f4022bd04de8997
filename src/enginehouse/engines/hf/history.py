"""What the hf server once had: nothing yet. It refuses request fields that it does not know."""

from __future__ import annotations

from collections.abc import Mapping

REMOVED_FLAGS: Mapping[str, str] = {}
IGNORED_FIELDS: Mapping[str, str] = {}
