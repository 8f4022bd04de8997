"""Which log-probabilities a server that we did not start gives for sampled tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from enginehouse.core import messages
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Sampler, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.tinker.sampling import requests
from enginehouse.tinker.sampling.base import LogprobScale

_PROMPT = (1, 45, 210, 33, 7, 19)
_FAR = 0.1  # nats; at temperature 0.3 the two are much further apart
MODES: Final[Mapping[LogprobScale, str]] = {"raw": "raw_logprobs", "scaled": "processed_logprobs"}
"""What vLLM's --logprobs-mode calls them."""


async def require_scale(sampler: Sampler, wanted: LogprobScale) -> None:
    """Raise ConfigurationError if a vLLM's setting is not the wanted one. Two requests."""
    parameters = SamplingParameters(temperature=0.3, max_tokens=1, n=4, seed=1, logprobs=0)
    prompt = messages.TokenPrompt(_PROMPT)
    response = await sampler.sample(SampleRequest(prompt=prompt, parameters=parameters))
    given = {}
    for completion in response.completions:
        sequence = requests.sequence_of(completion, candidates=0)
        given[int(sequence.tokens[0])] = float(sequence.logprobs[0])
    asked = requests.scoring_ids(_PROMPT, sorted(given), model=None)
    (token,) = (await sampler.sample(asked)).completions[0].logprobs or ()
    raw = {requests.id_of(one): one.logprob for one in token.top}
    scale = "scaled" if any(abs(raw[t] - given[t]) > _FAR for t in given) else "raw"
    if scale != wanted:
        raise ConfigurationError(
            f"the vLLM gives {scale} log-probabilities, and the service is to give {wanted} ones",
            fix=f"start it with --logprobs-mode {MODES[wanted]}, or set logprobs to {scale}",
        )
