"""Samples from a Megatron-LM text generation server, which knows texts, and no adapters.

Prompts are sent as text; what the server makes of them must be the very tokens that were asked.
Its replies have the ids of all tokens (dialects/megatron_text.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse.core import messages
from enginehouse.core.errors import ConfigurationError, TinkerError
from enginehouse.core.sampler import Sampler, SampleRequest, SampleResponse
from enginehouse.core.sampling import SamplingParameters
from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.runtime.context import Context
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.sampling import base
from enginehouse.tinker.sampling.base import Sampled, SamplingEngine, TokenPrompt, Weights
from enginehouse.tinker.sampling.errors import as_tinker_errors
from enginehouse.tinker.sampling.prompts import tokens_wanted

_LENGTH = 2048  # the server does not say
_MADE_OF = ("prompt", "max_tokens", "temperature", "top_p", "top_k", "stop", "model", "stream")


@asynccontextmanager
async def megatron_sampling(
    config: TinkerConfig, context: Context
) -> AsyncIterator[SamplingEngine]:
    """Sample from the server at `megatron_url`, which stays as it is.

    `base_model` is a folder with the server's tokenizer. Raises ConfigurationError, WireError.
    """
    tokenizer = await asyncio.to_thread(_tokenizer, config.base_model)
    plan = AskConfig(model="megatron", engine="megatron", url=config.megatron_url)
    async with open_deployment(plan, context, concurrency=1) as deployment:
        yield MegatronSampling(
            deployment.sampler,
            tokenizer,
            url=deployment.url,
            max_length=config.max_model_len or _LENGTH,
        )


def _tokenizer(base_model: str | None) -> Any:
    from tokenizers import Tokenizer

    file = Path(base_model or "").expanduser() / "tokenizer.json"
    if not file.is_file():
        raise ConfigurationError(
            f"there is no tokenizer.json in {base_model}",
            why="a Megatron text server takes texts, and the service samples from tokens",
            fix="give the folder of the model's checkpoint or tokenizer as the base model",
        )
    return Tokenizer.from_file(str(file))


class MegatronSampling:
    """A SamplingEngine for the base model alone; what the server lacks is refused.

    Its log-probabilities are passed on as they are: it does not say whether they are scaled.
    """

    def __init__(self, sampler: Sampler, tokenizer: Any, *, url: str, max_length: int) -> None:
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._url = url
        self._max_length = max_length

    @property
    def description(self) -> Mapping[str, Any]:
        """See SamplingEngine."""
        return {
            "engine": "megatron",
            "url": self._url,
            "log_probabilities": "as returned by the server",
            "adapters": [],
            "unembedding": {"answered_by": None, "why": "the server does not accept adapters"},
        }

    @property
    def max_length(self) -> int:
        """See SamplingEngine."""
        return self._max_length

    async def prepare(self, weights: Weights) -> None:
        """Refuse adapters."""
        _require_base(weights)

    async def forget(self, weights: Weights) -> None:
        """Nothing was loaded."""

    async def sample(self, weights: Weights, prompt: TokenPrompt) -> Sampled:
        """See SamplingEngine. Samples are drawn one after the other, as the server does."""
        _require_base(weights)
        _require_plain(prompt)
        count = tokens_wanted(prompt, max_length=self._max_length)
        parameters = SamplingParameters(
            temperature=prompt.temperature,
            top_k=prompt.top_k,
            top_p=prompt.top_p,
            max_tokens=max(1, count),
            logprobs=0,
            prompt_logprobs=0,
        )
        text = self._tokenizer.decode(prompt.tokens.tolist(), skip_special_tokens=False)
        request = SampleRequest(prompt=messages.TextPrompt(text), parameters=parameters)
        with as_tinker_errors():
            responses = [await self._sampler.sample(request) for _ in range(prompt.samples)]
        scores = self._prompt_logprobs(responses[0], prompt)
        return Sampled(
            sequences=tuple(self._sequence(one, prompt.stop, count) for one in responses),
            prompt_logprobs=None if prompt.prompt_logprobs_from is None else scores,
        )

    async def complete(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """See SamplingEngine; texts only."""
        _require_base(weights)
        if path != "/v1/completions":
            raise _unsupported("conversations")
        if unknown := sorted(body.keys() - set(_MADE_OF)):
            raise _unsupported(f"the field {unknown[0]}")
        if not isinstance(body["prompt"], str):
            raise _unsupported("prompts of tokens, or several prompts, in a completion")
        stop = body.get("stop") or ()
        with as_tinker_errors():
            parameters = SamplingParameters(
                temperature=body.get("temperature", 1.0),
                top_p=body.get("top_p", 1.0),
                top_k=body.get("top_k", 0),
                max_tokens=body.get("max_tokens", 16),
                stop=(stop,) if isinstance(stop, str) else tuple(stop),
            )
            prompt = messages.TextPrompt(body["prompt"])
            response = await self._sampler.sample(
                SampleRequest(prompt=prompt, parameters=parameters)
            )
        (made,) = response.completions
        choice = {"index": 0, "text": made.text, "finish_reason": made.finish_reason}
        return {
            "id": "megatron",
            "object": "text_completion",
            "model": body.get("model"),
            "choices": [choice | {"logprobs": None}],
            "usage": {
                "prompt_tokens": response.prompt_tokens,
                "completion_tokens": response.completion_tokens,
            },
        }

    async def stream(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """Refuse: the server does not stream."""
        del weights, path, body
        raise _unsupported("streams")

    def _prompt_logprobs(self, response: SampleResponse, prompt: TokenPrompt) -> Any:
        """The prompt's scores. Raises TinkerError if the server made other tokens of its text."""
        scores = (response.prompt_logprobs or ())[1:]
        if [score.token_id for score in scores if score] != prompt.tokens.tolist()[1:]:
            raise TinkerError(
                "the Megatron server would read the prompt as different tokens",
                why="it takes text only, and the tokenizer encodes this prompt's text differently",
                fix="send tokens as the model's tokenizer makes them, or use --sampler hf",
            )
        first = prompt.prompt_logprobs_from or 0
        values = [
            score.logprob if score and place >= first else np.nan
            for place, score in enumerate(scores, start=1)
        ]
        return np.array([np.nan, *values], np.float32)

    def _sequence(
        self,
        response: SampleResponse,
        stop: tuple[str, ...] | tuple[int, ...] | None,
        count: int,
    ) -> base.Sequence:
        (made,) = response.completions
        tokens = [score.token_id or 0 for score in made.logprobs or ()][:count]
        kept = next(
            (end for end in range(1, len(tokens) + 1) if self._ends(tokens[:end], stop or ())),
            None,
        )
        logprobs = [score.logprob for score in made.logprobs or ()][: kept or len(tokens)]
        return base.Sequence(
            tokens=np.array(tokens[: kept or len(tokens)], np.int32),
            logprobs=np.array(logprobs, np.float32),
            stopped=kept is not None or len(tokens) < count,
        )

    def _ends(self, tokens: Sequence[int], stop: tuple[str, ...] | tuple[int, ...]) -> bool:
        text = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return any(one in text if isinstance(one, str) else one == tokens[-1] for one in stop)


def _require_base(weights: Weights) -> None:
    if weights.folder is not None:
        raise _unsupported("LoRA adapters")


def _require_plain(prompt: TokenPrompt) -> None:
    lacking = {
        "a seed": prompt.seed is not None,
        "ignoring the model's own end (stop=[])": prompt.stop == (),
        "top-k log-probabilities": bool(prompt.prompt_top_k or prompt.sample_top_k),
        "target_prompt_logprobs": prompt.targets is not None,
        "prompt_alt_tokens_k": bool(prompt.alternatives),
    }
    for what, wanted in lacking.items():
        if wanted:
            raise _unsupported(what)


def _unsupported(what: str) -> TinkerError:
    return TinkerError(
        f"the Megatron text server does not support {what}",
        fix="leave it out, or ask the operator for --sampler vllm or hf",
    )
