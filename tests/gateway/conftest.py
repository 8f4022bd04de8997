"""Gateways run on the event loop of the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, whose transports are not asyncio's."""
    return {"uvloop": uvloop.new_event_loop}
