"""What a sampling engine is to the service: tokens in, tokens and log-probabilities out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenPrompt:
    """A prompt of token ids and how to continue it `samples` times.

    `stop` None ends at the model's own end tokens; a tuple of strings or of token ids ends there
    instead, and an empty one never. `top_k` 0 and `top_p` 1 are off. `max_tokens` None is as many
    as fit. `prompt_logprobs_from` is the first prompt position that is scored, None for none.
    `targets` (len(tokens) - 1, K) int64 asks for the log-probability of those ids at prompt
    positions 1 and later; -1 asks for nothing. `alternatives` draws that many tokens at each
    prompt position after the first.
    """

    tokens: NDArray[np.int32]
    samples: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] | tuple[int, ...] | None = None
    prompt_logprobs_from: int | None = None
    prompt_top_k: int = 0
    sample_top_k: int = 0
    targets: NDArray[np.int64] | None = None
    alternatives: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class TopK:
    """(N, K) candidates per position, best first; empty cells are id 0 and -99999.0."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Sequence:
    """One continuation: exact ids, stop token or stop string's tokens included.

    `stopped` is False where it was cut off at max_tokens. `logprobs` are (N,) float32.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    stopped: bool
    top: TopK | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Sampled:
    """The answer to a TokenPrompt.

    `prompt_logprobs` is (len(prompt),) float32, NaN where a position was not scored, as the first
    never is. `cached_tokens` are the prompt tokens found in the engine's prefix cache.
    """

    sequences: tuple[Sequence, ...]
    prompt_logprobs: NDArray[np.float32] | None = None
    prompt_top: TopK | None = None
    target_logprobs: NDArray[np.float32] | None = None
    alternatives: TopK | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What is to answer: the base model, or the adapter in a PEFT folder that never changes.

    `key` names the content among all weights of the service, such as its tinker:// path;
    `unembed` says that the adapter has an output layer.
    """

    key: str
    folder: Path | None = None
    unembed: bool = False


class SamplingEngine(Protocol):
    """Samples from the base model and from adapters of it; safe for many callers at once.

    An adapter is loaded when it is first asked for (or prepared), proven to have an effect unless
    it is untrained, and makes room for others when it is idle. Requests that are lost with the
    engine are asked again. Raises TinkerError for what the request is to blame for.
    """

    @property
    def description(self) -> Mapping[str, Any]:
        """What `status` shows: engine, version, resident adapters, who answers for whom and why."""
        ...

    @property
    def max_length(self) -> int:
        """The longest sequence, prompt and continuation together, in tokens."""
        ...

    async def prepare(self, weights: Weights) -> None:
        """Load an adapter ahead of its first request. Idempotent."""
        ...

    async def sample(self, weights: Weights, prompt: TokenPrompt) -> Sampled:
        """Ask once, of exactly these weights."""
        ...

    async def forget(self, weights: Weights) -> None:
        """Unload an adapter that nobody will ask for again. Idempotent."""
        ...

    async def complete(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """Answer an OpenAI request ("/v1/chat/completions" or "/v1/completions").

        `body` is passed on as it is but for its `model`. Returns the reply's JSON; see `stream`.
        """
        ...

    async def stream(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """As `complete`, for a body with "stream": an async iterator of server-sent event bytes.

        The adapter stays loaded until it has been read to its end or closed.
        """
        ...
