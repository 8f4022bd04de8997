"""Errors of ours that are also those which Tink's documents promise."""

from __future__ import annotations

from enginehouse.core.errors import AdapterError, ConnectionFailedError


class NoAdapterError(AdapterError, ValueError):
    """A path holds no adapter, or none that fits the served model; the server was not asked."""


class UnreachableError(ConnectionFailedError, ConnectionError):
    """No server answers at the configured address."""
