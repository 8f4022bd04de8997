"""Flags that SGLang no longer has, and request fields that it accepts and ignores.

The flags were compared between the wheels 0.4.6, 0.5.3, 0.5.8 and 0.5.23; the fields are none of
0.5.23's CompletionRequest and ChatCompletionRequest, which drop what they do not know, or, like
best_of, are read by nothing.
"""

from __future__ import annotations

_MOE = "use --moe-runner-backend"
_ATTENTION = "use --attention-backend"
_GONE = "leave it out: there is nothing left to set"

REMOVED_FLAGS = {
    "--cuda-graph-max-bs": "use --cuda-graph-max-bs-decode",
    "--cuda-graph-bs": "use --cuda-graph-bs-decode",
    "--enable-piecewise-cuda-graph": "use --cuda-graph-backend-prefill",
    "--piecewise-cuda-graph-max-tokens": "use --cuda-graph-max-bs-prefill",
    "--piecewise-cuda-graph-tokens": "use --cuda-graph-bs-prefill",
    "--stream-output": "use --incremental-streaming-output",
    "--enable-flashinfer-mla": _ATTENTION,
    "--enable-flashmla": _ATTENTION,
    "--enable-ep-moe": "use --ep-size",
    "--enable-deepep-moe": "use --moe-a2a-backend deepep",
    "--enable-flashinfer-cutlass-moe": _MOE,
    "--enable-flashinfer-cutedsl-moe": _MOE,
    "--enable-flashinfer-mxfp4-moe": _MOE,
    "--enable-flashinfer-trtllm-moe": _MOE,
    "--enable-triton-kernel-moe": _MOE,
    "--max-micro-batch-size": "use --pp-max-micro-batch-size",
    "--hybrid-kvcache-ratio": "use --swa-full-tokens-ratio",
    "--enable-double-sparsity": _GONE,
    "--torchao-config": "use --quantization",
    "--enable-nan-detection": _GONE,
    "--n-share-experts-fusion": _GONE,
}

_STRUCTURED = "StructuredOutput"
IGNORED_FIELDS = {
    "structured_outputs": _STRUCTURED,
    "guided_json": _STRUCTURED,
    "guided_regex": _STRUCTURED,
    "guided_choice": _STRUCTURED,
    "guided_grammar": _STRUCTURED,
    "json_schema": _STRUCTURED,  # a chat completion drops it
    "grammar": "ebnf",
    "best_of": "n, choosing among the answers yourself",
    "use_beam_search": "n",
    "length_penalty": "nothing: SGLang has no beam search here",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "do_sample": "temperature (0 is greedy)",
    "sampling_seed": "nothing: a seed counts only under --enable-deterministic-inference",
    "random_seed": "nothing: a seed counts only under --enable-deterministic-inference",
    "stop_sequences": "stop",
    "include_stop_str_in_output": "no_stop_trim",
    "bad_words": "logit_bias",
    "allowed_token_ids": "logit_bias",
    "truncate_prompt_tokens": "a shorter prompt",
    "add_generation_prompt": "nothing: it is always added",
    "chat_template": "--chat-template when the server is started",
    "enable_thinking": "chat_template_kwargs",
    "functions": "tools",
    "function_call": "tool_choice",
    "request_id": "rid",
    "typical_p": "nothing: SGLang does not sample so",
    "no_repeat_ngram_size": "nothing: SGLang does not sample so",
}
