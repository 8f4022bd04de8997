"""What kills vLLM, or spoils its answers, and can be avoided; tried on the CPU build of 0.32.0."""

from __future__ import annotations

from enginehouse.core.sampler import SampleRequest
from enginehouse.engines.base import Quirk


def _wants_prompt_logprobs(request: SampleRequest) -> bool:
    return request.parameters.prompt_logprobs is not None


# The CPU's random generator has no offset to set back, and any full batch cuts a prefill in two,
# whatever max_num_batched_tokens is.
SEEDED_CHUNKED_PREFILL = Quirk(
    name="seeded chunked prefill",
    kills="a request with a seed whose prefill is cut in two",
    avoided="--no-enable-chunked-prefill",
)
LORA_PROMPT_LOGPROBS = Quirk(
    name="prompt log-probabilities with LoRA",
    kills="a request for prompt log-probabilities beside any other, where LoRA is enabled,",
    avoided="such requests are sent by themselves",
    alone=_wants_prompt_logprobs,
)
# In a batch with the former, vLLM's sampler gathers the named tokens for all, and nothing else: the
# latter get one candidate, and others of log-probability -9999. (v1/sample/sampler.py of 0.32.0.)
NAMED_TOKENS = Quirk(
    name="log-probabilities of named tokens beside the most likely ones",
    kills=None,
    avoided="requests for either are not in flight at the same time",
    mixes_scores=True,
)
