"""Deployments, opened as the commands open them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from enginehouse.core.incidents import Incident
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.runtime.context import Context


@asynccontextmanager
async def opened(
    plan: ServeConfig,
    *,
    incidents: list[Incident] | None = None,
    concurrency: int | None = None,
    **context: Any,
) -> AsyncIterator[Deployment]:
    """A deployment whose incidents are appended to `incidents`. `context`: Context's fields."""
    heard = [] if incidents is None else incidents
    async with open_deployment(plan, Context(**context), concurrency=concurrency) as deployment:
        with deployment.incidents.subscribe(heard.append):
            yield deployment
