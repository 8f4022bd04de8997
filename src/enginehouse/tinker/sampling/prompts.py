"""What a prompt needs of an engine, checked before it is sent."""

from __future__ import annotations

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.sampling.base import TokenPrompt


def tokens_wanted(prompt: TokenPrompt, *, max_length: int) -> int:
    """How many tokens each sequence may have. Raises TinkerError if the prompt does not fit."""
    length = len(prompt.tokens)
    if length == 0:
        raise TinkerError("the prompt has no tokens", fix="send at least one token")
    room = max_length - length
    if room < 0 or (room == 0 and prompt.max_tokens != 0 and not _only_scored(prompt)):
        raise TinkerError(
            f"the prompt has {length} tokens, but the model takes at most {max_length}",
            why="prompt and continuation together must fit",
            fix="shorten the prompt",
        )
    if prompt.max_tokens is None:
        return room
    if prompt.max_tokens > room and not _only_scored(prompt):
        raise TinkerError(
            f"the prompt has {length} tokens and max_tokens is {prompt.max_tokens}, but the "
            f"model takes at most {max_length}",
            why="prompt and continuation together must fit",
            fix=f"ask for at most {room} tokens, or shorten the prompt",
        )
    return prompt.max_tokens


def _only_scored(prompt: TokenPrompt) -> bool:
    """Whether the one token that is sampled is a formality, as in the SDK's compute_logprobs."""
    return prompt.max_tokens == 1 and prompt.prompt_logprobs_from is not None
