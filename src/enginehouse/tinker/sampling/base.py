"""What a sampling engine is to the service: tokens in, tokens and log-probabilities out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenPrompt:
    """A prompt of token ids and how to continue it `samples` times.

    A sequence ends at the model's own end tokens, and also at the strings or the token ids in
    `stop`; with an empty tuple it ends nowhere. `top_k` 0 and `top_p` 1 are off. `max_tokens` None
    is as many as fit. `prompt_logprobs_from` is the first prompt position that is scored, None for
    none. `prompt_top_k` and `sample_top_k` ask for the most likely tokens at each scored position.
    `targets` (len(tokens) - 1, K) int64 asks for the log-probability of those ids at prompt
    positions 1 and later; -1 asks for nothing. `alternatives` draws that many tokens at each
    prompt position after the first, at `temperature`.
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

    @property
    def positions(self) -> int:
        """At how many positions of the prompt `targets` and `alternatives` ask."""
        targets = 0 if self.targets is None else int((self.targets >= 0).any(axis=1).sum())
        return targets + (len(self.tokens) - 1 if self.alternatives else 0)


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
    never is. `prompt_top` has a row for each prompt position. `target_logprobs` is shaped as
    `targets`, 0 where those are -1; `alternatives` has a row for each prompt position after the
    first, in the order drawn. `cached_tokens` are the prompt tokens found in the engine's prefix
    cache, 0 if it does not say.
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
    `unembed` says that the adapter has an output layer. The weights of several owners take turns
    where an engine has fewer places than there are adapters.
    """

    key: str
    folder: Path | None = None
    unembed: bool = False
    owner: str = ""


LogprobScale = Literal["raw", "scaled"]
"""Log-probabilities of sampled tokens: the model's own, or those of the distribution that was
sampled from, after temperature, top_k and top_p. Those of prompts are always the model's own."""


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
