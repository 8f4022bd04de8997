"""What request layers must know of an OpenAI body that passes as it came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from enginehouse.core.sampling import SamplingParameters

SCORE_FIELDS: Final = ("echo", "logprobs", "top_logprobs", "prompt_logprobs", "logprob_token_ids")
_NONE: Final = SamplingParameters()


def scores_asked(fields: Mapping[str, Any]) -> SamplingParameters:
    """The log-probabilities that a body asks for, of its SCORE_FIELDS; nothing else of it.

    Their values may have any type: the engine refuses what is wrong.
    """
    logprobs, ids = fields.get("logprobs"), fields.get("logprob_token_ids")
    scores_prompt = fields.get("prompt_logprobs") is not None
    scores_prompt = scores_prompt or bool(fields.get("echo") and logprobs is not None)
    if not (scores_prompt or logprobs or ids):
        return _NONE
    # a number in completions; true or false in chat, where top_logprobs is the number
    wanted = fields.get("top_logprobs") if isinstance(logprobs, bool) else logprobs
    return SamplingParameters(
        logprobs=(wanted if isinstance(wanted, int) else 0) if logprobs else None,
        prompt_logprobs=0 if scores_prompt else None,
        extra={"logprob_token_ids": ids} if ids else {},
    )
