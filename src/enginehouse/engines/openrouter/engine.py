"""OpenRouter: one API before many providers, with OpenAI's chat completions."""

from __future__ import annotations

from enginehouse.client.wire import Wire
from enginehouse.core.sampler import Capability
from enginehouse.dialects.openai_hosted import OPENROUTER_CHAT
from enginehouse.engines.hosted import HostedEngine

_ERRORS = OPENROUTER_CHAT.errors


class OpenRouterEngine(HostedEngine):
    """Declared is what some provider does; a request goes only to those that take all its fields.

    Its seed is not declared: whether one has an effect is up to the provider.
    """

    name = "openrouter"
    tried = "its documented wire format, against a fake"
    wire = Wire(
        chat=OPENROUTER_CHAT,
        completions=None,
        error_reply=_ERRORS,
        reply_error=_ERRORS.in_reply,
        models_path="/v1/models/user",  # unlike /v1/models it refuses a wrong key
        rate_limited=True,
    )
    url_variables = ("OPENROUTER_BASE_URL",)
    key_variables = (_ERRORS.key_variable,)
    default_url = "https://openrouter.ai/api"
    supports = frozenset(
        {
            *(Capability.CHAT, Capability.STREAM, Capability.TOP_K, Capability.MIN_P),
            *(Capability.REPETITION_PENALTY, Capability.LOGPROBS),
            *(Capability.JSON_SCHEMA, Capability.TOOLS),
        }
    )
    most_logprobs = 20
