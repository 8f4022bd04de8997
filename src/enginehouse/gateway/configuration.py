"""How a gateway listens, and what it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from enginehouse.core.strict_model import StrictModel


class GatewayOptions(StrictModel):
    """How a gateway listens, and what it allows."""

    host: str = "127.0.0.1"
    """The address to listen on; anything but loopback requires an API key."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port; by default a free one."""
    api_key: Annotated[str | None, Field(repr=False)] = None
    """The key that requests must carry; one is made where others can reach the gateway."""
    max_body: Annotated[int, Field(ge=1)] = 32 * 2**20
    """The largest body of a request, in bytes."""
    max_in_flight: Annotated[int, Field(ge=1)] = 4096
    """Requests that may be in the gateway at once; more are told to come back later."""
    adapters: Path | None = None
    """A folder of adapters, each in a folder of its own, whose name requests give as the model."""
    record: Path | None = None
    """The folder of the journal in which requests and answers are recorded."""
    replay: bool = False
    """Answer a repeated request from the journal, where its answer cannot differ."""
