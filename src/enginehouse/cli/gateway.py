"""enginehouse gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import Given, with_config_options
from enginehouse.gateway.configuration import GatewayConfig
from enginehouse.runtime.context import Context

if TYPE_CHECKING:
    from enginehouse.gateway.service import Gateway


@with_config_options(GatewayConfig)
def gateway(*, given: Given[GatewayConfig], console: Console) -> None:
    """Answer the OpenAI API in front of a model or a running server, until Ctrl-C.

    --host, --port and --api-key are the gateway's own.
    """
    config = given.settings()

    def ready(opened: Gateway) -> None:
        facts = {
            "url": opened.url,
            "model": opened.model,
            "needs_key": opened.api_key is not None,
        }
        console.result(facts, text=lambda: _announce(opened, console))

    from enginehouse.commands.gateway import serve_gateway

    run_async(serve_gateway(config, Context(notify=console.note), ready=ready))


def _announce(opened: Gateway, console: Console) -> None:
    key = "none" if opened.api_key is None else "$ENGINEHOUSE_API_KEY"
    console.say(f"url:    {opened.url}/v1")
    console.say(f"model:  {opened.model}")
    console.say(f"use:    export OPENAI_BASE_URL={opened.url}/v1 OPENAI_API_KEY={key}")
    console.say(f"watch:  {opened.url}/metrics")
    console.say("stop:   Ctrl-C")
    if opened.api_key is not None:
        console.say("key:    every request needs the gateway's API key")
