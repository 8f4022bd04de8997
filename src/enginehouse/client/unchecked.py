"""Requests that some servers accept silently although they cannot answer them."""

from __future__ import annotations

import msgspec

from enginehouse.core.errors import ContextOverflowError, UnknownModelError
from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import SampleRequest


class Unchecked(msgspec.Struct, frozen=True, kw_only=True):
    """What a server does not check: the names it serves, and how long an answer may be.

    `context` is the most tokens of prompt and answer together; None if it is not known.
    """

    names: tuple[str, ...]
    context: int | None

    def require_answerable(self, request: SampleRequest, *, model: str) -> None:
        """Raise UnknownModelError or ContextOverflowError, before anything is sent."""
        if model not in self.names:
            raise UnknownModelError(
                f"the server does not serve {model!r}; nothing was sent",
                why=f"it serves {', '.join(self.names)}, and would answer with that",
                fix="ask for a name that the server lists under /v1/models",
            )
        if self.context is None:
            return
        prompt = request.prompt
        length = len(prompt.token_ids) if isinstance(prompt, TokenPrompt) else 1
        wanted = request.parameters.max_tokens
        if length + wanted > self.context:
            raise ContextOverflowError(
                f"max_tokens {wanted} and the prompt exceed the context of {self.context} tokens; "
                "nothing was sent",
                fix="lower max_tokens, shorten the prompt, or raise max_model_len",
            )
