"""How a gateway listens, and what it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from enginehouse.core.strict_model import ComposedModel, StrictModel
from enginehouse.deployment.configuration import AskConfig


class GatewaySettings(StrictModel):
    """What stands between a program and the model."""

    adapters: Path | None = None
    """A folder of adapters, each in a folder of its own, whose name requests give as the model."""
    record: Path | None = None
    """The folder of the journal in which requests and answers are recorded."""
    replay: bool = False
    """Answer a repeated request from the journal, where its answer cannot differ."""
    resume: bool = False
    """The program that is recorded was started again: its k-th identical request gets the k-th
    answer that was recorded before, whatever its temperature."""

    @model_validator(mode="after")
    def _journal_to_replay(self) -> Self:
        if (self.replay or self.resume) and self.record is None:
            raise ValueError("nothing can be replayed without a journal: give the folder to record")
        return self


class GatewayLimits(StrictModel):
    """How much a gateway takes at once."""

    max_body: Annotated[int, Field(ge=1)] = 32 * 2**20
    """The largest body of a request, in bytes."""
    max_in_flight: Annotated[int, Field(ge=1)] = 4096
    """Requests that may be in the gateway at once; more are told to come back later."""


class GatewayOptions(StrictModel):
    """How a gateway listens, and what it allows."""

    host: str = "127.0.0.1"
    """The address to listen on; anything but loopback requires an API key."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port; by default a free one."""
    api_key: Annotated[str | None, Field(repr=False)] = None
    """The key that requests must carry; one is made where others can reach the gateway."""
    max_loras: Annotated[int, Field(ge=1)] | None = None
    """Adapters to load at once into a server that runs already; by default one."""
    settings: GatewaySettings = GatewaySettings()
    limits: GatewayLimits = GatewayLimits()


class EngineLimits(StrictModel):
    """How much of what a gateway takes goes on to the engine at once."""

    concurrency: Annotated[int, Field(ge=1)] | None = None
    """The largest number of requests in flight in the engine; by default it follows its queue."""


class GatewayConfig(ComposedModel):
    """A gateway, and what answers behind it.

    The `server`'s host, port and api_key are the gateway's own: the server behind it listens on
    loopback.
    """

    plan: AskConfig
    settings: GatewaySettings
    limits: GatewayLimits
    engine_limits: EngineLimits
