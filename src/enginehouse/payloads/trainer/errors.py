"""What a request is told."""

from __future__ import annotations


class RequestError(Exception):
    """The request is to blame: what was wrong with it, and what to do. Nothing has changed."""
