"""Anthropic's API: messages, over our own client."""

from __future__ import annotations

from enginehouse.client.wire import Wire
from enginehouse.core.sampler import Capability
from enginehouse.dialects import anthropic_messages
from enginehouse.engines.hosted import HostedEngine

VERSION = "2023-06-01"


def _authorize(api_key: str) -> dict[str, str]:
    return {"x-api-key": api_key, "anthropic-version": VERSION}


class AnthropicEngine(HostedEngine):
    """It has neither seeds nor log-probabilities."""

    name = "anthropic"
    tried = "its documented wire format, against a fake checked with anthropic 0.125's types"
    wire = Wire(
        chat=anthropic_messages,
        completions=None,
        error_reply=anthropic_messages.errors,
        authorize=_authorize,
        models_path="/v1/models?limit=1000",
        rate_limited=True,
    )
    url_variables = ("ANTHROPIC_BASE_URL",)
    key_variables = (anthropic_messages.errors.key_variable,)
    default_url = "https://api.anthropic.com"
    supports = frozenset(
        {
            *(Capability.CHAT, Capability.STREAM, Capability.TOP_K),
            *(Capability.JSON_SCHEMA, Capability.TOOLS),
        }
    )
