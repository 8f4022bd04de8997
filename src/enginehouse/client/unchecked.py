"""What some servers would take without a word, refused by the client before anything is sent."""

from __future__ import annotations

import msgspec

from enginehouse.core.errors import ContextOverflowError, UnknownModelError
from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import SampleRequest


class Unchecked(msgspec.Struct, frozen=True, kw_only=True):
    """What a server lets pass: names that it does not serve, and answers beyond its context.

    `context`: tokens that one sequence may have, prompt and answer together; None is not known.
    """

    names: tuple[str, ...]
    context: int | None

    def check(self, request: SampleRequest, *, model: str) -> None:
        """Raise UnknownModelError or ContextOverflowError for what could not be answered."""
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
