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
    """A folder of LoRA adapters, one subfolder each; requests select one by naming the subfolder as
    the model."""
    record: Path | None = None
    """Record requests and answers in a journal in this folder."""
    replay: bool = False
    """With record: answer a repeated request from the journal if its answer is deterministic."""
    resume: bool = False
    """With record: continue a recorded program. The k-th identical request gets the k-th recorded
    answer, whatever the temperature."""

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
    """The most requests in the gateway at once; further ones get 503 and Retry-After."""


class GatewayOptions(StrictModel):
    """How a gateway listens, and what it allows."""

    host: str = "127.0.0.1"
    """The address to listen on; anything but loopback requires an API key."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port; by default a free one."""
    api_key: Annotated[str | None, Field(repr=False)] = None
    """The key that requests must carry; by default, one is generated if other machines can reach
    the gateway."""
    max_loras: Annotated[int, Field(ge=1)] | None = None
    """The most adapters to load at once into a server that is already running; by default one."""
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
