"""A Sampler that answers prompts of tokens as vLLM does, with the fake engine's numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
    TokenLogprob,
)
from enginehouse.testing.fake_sampling import FakeModel

Change = Callable[[NDArray[np.float64], bool], NDArray[np.float64]]


class TokenSampler:
    """Answers greedily, or with the tokens 0, 1, 2 … as samples.

    `changes` are what models other than the base do to its log-probabilities, given whether they
    are a prompt's.
    """

    capabilities = Capabilities(supports=frozenset(Capability))

    def __init__(self, *, size: int = 400, changes: dict[str, Change] | None = None) -> None:
        self.base = FakeModel("base", size)
        self.changes = changes or {}
        self.asked: list[SampleRequest] = []

    def logprobs(
        self, tokens: list[int], model: str | None, *, prompt: bool = False
    ) -> NDArray[np.float64]:
        """Of every token after `tokens`."""
        values = self.base.logprobs(tokens)
        if (change := self.changes.get(model or "base")) is not None:
            values = change(values, prompt)
        return values - np.logaddexp.reduce(values)

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """One token, with what was asked about it and about the prompt."""
        await asyncio.sleep(0)
        self.asked.append(request)
        assert isinstance(request.prompt, TokenPrompt)
        tokens, how = list(request.prompt.token_ids), request.parameters
        values = self.logprobs(tokens, request.model)
        samples = range(how.n) if how.temperature else [int(values.argmax())]
        wanted = how.extra.get("logprob_token_ids")
        return SampleResponse(
            completions=tuple(
                Completion(
                    text="",
                    finish_reason="length",
                    token_ids=(token,),
                    logprobs=(self._scored(values, token, how.logprobs or 0, wanted),),
                )
                for token in samples
            ),
            model=request.model or "base",
            request_id="1",
            prompt_tokens=len(tokens),
            completion_tokens=1,
            timing=Timing(started=0.0, elapsed=0.0),
            prompt_logprobs=None
            if how.prompt_logprobs is None
            else (
                None,
                *(
                    self._scored(
                        self.logprobs(tokens[:place], request.model, prompt=True),
                        tokens[place],
                        how.prompt_logprobs,
                        None,
                    )
                    for place in range(1, len(tokens))
                ),
            ),
        )

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Never asked."""
        raise NotImplementedError
        yield

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Never asked."""
        raise NotImplementedError

    def _scored(
        self, values: NDArray[np.float64], token: int, top: int, wanted: list[int] | None
    ) -> TokenLogprob:
        ranked = wanted if wanted is not None else np.argsort(-values)[:top].tolist()
        return TokenLogprob(
            logprob=float(values[token]),
            text=f"token_id:{token}",
            token_id=token,
            top=tuple(
                TokenLogprob(logprob=float(values[one]), text=f"token_id:{one}") for one in ranked
            ),
        )
