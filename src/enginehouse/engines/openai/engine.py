"""OpenAI's API: chat completions, over our own client."""

from __future__ import annotations

from enginehouse.client.wire import Wire
from enginehouse.core.sampler import Capability
from enginehouse.dialects.openai_hosted import OPENAI_CHAT
from enginehouse.engines.hosted import HostedEngine


class OpenAIEngine(HostedEngine):
    """Its seed is not declared: the API promises no more than its best effort.

    Models that reason refuse log-probabilities and more.
    """

    name = "openai"
    tried = "its documented wire format, against a fake checked with openai 3.54's types"
    wire = Wire(
        chat=OPENAI_CHAT, completions=None, error_reply=OPENAI_CHAT.errors, rate_limited=True
    )
    url_variables = ("OPENAI_BASE_URL",)
    key_variables = (OPENAI_CHAT.errors.key_variable,)
    default_url = "https://api.openai.com"
    supports = frozenset(
        {
            *(Capability.CHAT, Capability.STREAM, Capability.N, Capability.LOGPROBS),
            *(Capability.JSON_SCHEMA, Capability.TOOLS),
        }
    )
    most_logprobs = 20
