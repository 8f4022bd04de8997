"""Flags that llama-server no longer has, and request fields that it accepts and ignores.

It ignores every field that it does not know; listed are those that other engines do know.
"""

from __future__ import annotations

from collections.abc import Mapping

REMOVED_FLAGS: Mapping[str, str] = {}
IGNORED_FIELDS = {
    "guided_json": "structured.json_schema",
    "guided_choice": "structured.choice",
    "guided_grammar": "structured.grammar",
    "guided_regex": "an engine with regular expressions (vllm)",
    "structured_outputs": "structured",
    "repetition_penalty": "repetition_penalty in the parameters",
    "prompt_logprobs": "an engine that has them (vllm)",
    "return_token_ids": "logprobs, which have the tokens' ids",
    "min_tokens": "ignore_eos, or logit_bias",
    "bad_words": "logit_bias",
    "length_penalty": "an engine with beam search",
    "use_beam_search": "an engine with beam search",
}
