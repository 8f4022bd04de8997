"""POST /v1/chat/completions of the hosted APIs: OpenAI's own, and OpenRouter's.

Protocol: https://platform.openai.com/docs/api-reference/chat and
https://openrouter.ai/docs/api-reference/overview. Replies are those of `openai_chat`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from enginehouse.core.messages import ChatPrompt
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.dialects import openai_chat
from enginehouse.dialects.base import require
from enginehouse.dialects.hosted_errors import HostedErrors
from enginehouse.dialects.openai_requests import hosted_body

_encode = msgspec.json.Encoder().encode


@dataclass(kw_only=True)
class HostedChat:
    """A vendor's chat completions, a Dialect; `defaults` are fields that `extra` may replace."""

    errors: HostedErrors
    length: str = "max_completion_tokens"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    path: str = openai_chat.path

    def encode(
        self, request: SampleRequest, *, model: str, capabilities: Capabilities, stream: bool
    ) -> bytes:
        """See Dialect.encode; the prompt is a ChatPrompt."""
        assert isinstance(request.prompt, ChatPrompt)
        require(capabilities, Capability.CHAT, "chat prompts")
        body = hosted_body(
            request,
            model=model,
            messages=openai_chat.encode_messages(request.prompt.messages),
            length=self.length,
            capabilities=capabilities,
            stream=stream,
        )
        return _encode({**self.defaults, **body})

    def decode(self, body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
        """See Dialect.decode."""
        return openai_chat.decode(body, request=request, timing=timing)

    def decode_chunk(self, data: bytes) -> tuple[Delta, ...]:
        """See Dialect.decode_chunk."""
        if error := self.errors.in_reply(data):
            raise error
        return openai_chat.decode_chunk(data)

    def is_end(self, data: bytes) -> bool:
        """See Dialect.is_end."""
        return openai_chat.is_end(data)


OPENAI_CHAT = HostedChat(
    errors=HostedErrors(
        vendor="OpenAI",
        key_variable="OPENAI_API_KEY",
        keys_page="https://platform.openai.com/api-keys",
        billing_page="https://platform.openai.com/settings/organization/billing",
    )
)
# without require_parameters OpenRouter silently drops what a provider does not support
OPENROUTER_CHAT = HostedChat(
    errors=HostedErrors(
        vendor="OpenRouter",
        key_variable="OPENROUTER_API_KEY",
        keys_page="https://openrouter.ai/settings/keys",
        billing_page="https://openrouter.ai/settings/credits",
    ),
    length="max_tokens",
    defaults={"provider": {"require_parameters": True}},
)
