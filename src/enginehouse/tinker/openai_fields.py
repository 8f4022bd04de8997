"""Which fields an OpenAI request may have: vLLM, which answers most, ignores what it does not know.

The names are those of vLLM 0.32. What is left out of its own is what would reach past the request:
its priority, the server's files and templates, tensors, and other servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from enginehouse.core.errors import TinkerError, nearest

_BOTH: Final = """
    model stream stream_options user n seed max_tokens temperature top_p top_k min_p
    frequency_penalty presence_penalty repetition_penalty repetition_detection length_penalty
    use_beam_search logit_bias allowed_token_ids bad_words stop stop_token_ids min_tokens
    ignore_eos include_stop_str_in_output skip_special_tokens spaces_between_special_tokens
    truncate_prompt_tokens truncation_side echo logprobs prompt_logprobs logprob_token_ids
    return_token_ids return_tokens_as_token_ids add_special_tokens response_format
    structured_outputs thinking_token_budget
"""
_CHAT: Final = """
    messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls
    reasoning_effort include_reasoning add_generation_prompt continue_final_message documents
    chat_template_kwargs
"""
_FIELDS: Final = {
    "/v1/completions": frozenset({"prompt", "suffix", *_BOTH.split()}),
    "/v1/chat/completions": frozenset({*_CHAT.split(), *_BOTH.split()}),
}


def require_known_fields(path: str, body: Mapping[str, Any]) -> None:
    """Raise TinkerError (400) for a field that is ignored or not allowed, unless it is null."""
    known = _FIELDS[path]
    for name in sorted(name for name, value in body.items() if value is not None):
        if name not in known:
            close = nearest(name, sorted(known))
            raise TinkerError(
                f"the field {name} is not supported by {path} of this service",
                fix=f"did you mean {close!r}?" if close else "leave it out",
            )
