"""How long work on a server's weights may take."""

from __future__ import annotations

DEADLINE = 600.0  # seconds that a swap may take
