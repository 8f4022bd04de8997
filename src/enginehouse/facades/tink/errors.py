"""Our errors as subclasses of those in Tink's documents."""

from __future__ import annotations

from enginehouse.core.errors import AdapterError, ConnectionFailedError


class NoAdapterError(AdapterError, ValueError):
    """A folder has no adapter, or none that fits the served model; nothing was sent."""


class UnreachableError(ConnectionFailedError, ConnectionError):
    """No server answers at the configured address."""
