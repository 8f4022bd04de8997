"""Anthropic's API: messages, over our own client."""

from __future__ import annotations

from enginehouse.client.wire import Wire
from enginehouse.core.sampler import Capabilities, Capability, LoadSignal
from enginehouse.dialects import anthropic_messages

VERSION = "2023-06-01"


def _authorize(api_key: str) -> dict[str, str]:
    return {"x-api-key": api_key, "anthropic-version": VERSION}


class AnthropicEngine:
    """A RemoteEngine."""

    name = "anthropic"
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
    needs_key = True

    @property
    def tried(self) -> str | None:
        """Against what it has been tested."""
        return "its documented wire format, against a fake checked with anthropic 0.125's types"

    @property
    def default_url(self) -> str | None:
        """The vendor's address."""
        return "https://api.anthropic.com"

    @property
    def load_signal(self) -> LoadSignal | None:
        """It shows no queue."""
        return None

    def capabilities(self, version: str | None) -> Capabilities:
        """What its models do; it has neither seeds nor log-probabilities."""
        del version
        return Capabilities(
            supports=frozenset(
                {
                    Capability.CHAT,
                    Capability.STREAM,
                    Capability.TOP_K,
                    Capability.JSON_SCHEMA,
                    Capability.TOOLS,
                }
            )
        )
