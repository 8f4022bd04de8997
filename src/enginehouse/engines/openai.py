"""OpenAI's API: chat completions, over our own client."""

from __future__ import annotations

from enginehouse.client.wire import Wire
from enginehouse.core.sampler import Capabilities, Capability, LoadSignal
from enginehouse.dialects.openai_hosted import OPENAI_CHAT

_ERRORS = OPENAI_CHAT.errors


class OpenAIEngine:
    """A RemoteEngine. Its seed is not declared: the API promises no more than its best effort."""

    name = "openai"
    wire = Wire(
        chat=OPENAI_CHAT,
        completions=None,
        error_reply=_ERRORS,
        rate_limited=True,
    )
    url_variables = ("OPENAI_BASE_URL",)
    key_variables = (_ERRORS.key_variable,)
    needs_key = True

    @property
    def tried(self) -> str | None:
        """Against what it has been tested."""
        return "its documented wire format, against a fake checked with openai 3.54's types"

    @property
    def default_url(self) -> str | None:
        """The vendor's address."""
        return "https://api.openai.com"

    @property
    def load_signal(self) -> LoadSignal | None:
        """It shows no queue."""
        return None

    def capabilities(self, version: str | None) -> Capabilities:
        """What its chat models do; those that reason refuse log-probabilities and more."""
        del version
        return Capabilities(
            supports=frozenset(
                {
                    Capability.CHAT,
                    Capability.STREAM,
                    Capability.N,
                    Capability.LOGPROBS,
                    Capability.JSON_SCHEMA,
                    Capability.TOOLS,
                }
            ),
            most_logprobs=20,
        )
