"""Flags that vLLM no longer has, and request fields that it accepts and ignores.

The flags were looked up in the option list of 0.32.0; the fields in its request models, which
allow any extra field and silently drop it.
"""

from __future__ import annotations

_SPECULATIVE = (
    'use --speculative-config with JSON: \'{"method": …, "model": …, "num_speculative_tokens": …}\''
)
_STRUCTURED = (
    'use --structured-outputs-config with JSON: \'{"backend": "xgrammar"}\', '
    "and structured_outputs in the request"
)
_ALWAYS = "leave it out: vLLM always works that way now"
_GONE = "leave it out: there is nothing left to set"

REMOVED_FLAGS = {
    "--swap-space": "leave it out: a preempted request is computed again, nothing is swapped to"
    " CPU memory; to keep KV blocks there, use --kv-offloading-size GiB",
    "--preemption-mode": "leave it out: a preempted request is always computed again",
    "--disable-log-requests": "leave it out: requests are logged only with --enable-log-requests",
    "--use-v2-block-manager": _ALWAYS,
    "--guided-decoding-backend": _STRUCTURED,
    "--guided-decoding-disable-fallback": _STRUCTURED,
    "--guided-decoding-disable-any-whitespace": _STRUCTURED,
    "--num-lookahead-slots": "leave it out: it follows from --speculative-config",
    "--speculative-model": _SPECULATIVE,
    "--num-speculative-tokens": _SPECULATIVE,
    "--speculative-draft-tensor-parallel-size": _SPECULATIVE,
    "--ngram-prompt-lookup-max": _SPECULATIVE,
    "--num-scheduler-steps": "leave it out: scheduling is asynchronous by itself"
    " (--async-scheduling)",
    "--multi-step-stream-outputs": _GONE,
    "--scheduler-delay-factor": _GONE,
    "--disable-async-output-proc": _GONE,
    "--disable-frontend-multiprocessing": _GONE,
    "--tokenizer-pool-size": "use --renderer-num-workers",
    "--tokenizer-pool-type": _GONE,
    "--task": "use --runner (generate, pooling) and --convert (embed, classify)",
    "--device": "choose the build instead: enginehouse install vllm --variant cpu or cuda",
    "--worker-use-ray": "use --distributed-executor-backend ray",
    "--engine-use-ray": "use --distributed-executor-backend ray",
    "--max-seq-len-to-capture": "use --max-cudagraph-capture-size",
    "--max-context-len-to-capture": "use --max-cudagraph-capture-size",
    "--cuda-graph-sizes": "use --cudagraph-capture-sizes",
    "--rope-scaling": "use --hf-overrides with JSON: '{\"rope_parameters\": {…}}'",
    "--rope-theta": "use --hf-overrides with JSON: '{\"rope_parameters\": {…}}'",
    "--enable-reasoning": "leave it out: --reasoning-parser alone turns it on",
    "--disable-mm-preprocessor-cache": "use --mm-processor-cache-gb 0",
    "--lora-extra-vocab-size": _GONE,
    "--long-lora-scaling-factors": _GONE,
    "--enable-lora-bias": _GONE,
    "--enable-prompt-adapter": _GONE,
    "--quantization-param-path": _GONE,
    "--calculate-kv-scales": _GONE,
}

_STRUCTURED_FIELD = "structured_outputs"
IGNORED_FIELDS = {
    "guided_json": _STRUCTURED_FIELD,
    "guided_regex": _STRUCTURED_FIELD,
    "guided_choice": _STRUCTURED_FIELD,
    "guided_grammar": _STRUCTURED_FIELD,
    "guided_decoding_backend": _STRUCTURED_FIELD,
    "guided_whitespace_pattern": _STRUCTURED_FIELD,
    "best_of": "n, choosing among the answers yourself",
    "early_stopping": "nothing: beam search here has no such option",
    "functions": "tools",
    "function_call": "tool_choice",
    "enable_thinking": "chat_template_kwargs",
    "max_new_tokens": "max_tokens",
    "do_sample": "temperature (0 is greedy)",
    "num_beams": "use_beam_search and n",
    "num_return_sequences": "n",
    "random_seed": "seed",
    "stop_sequences": "stop",
    "typical_p": "nothing: vLLM does not sample so",
    "no_repeat_ngram_size": "nothing: vLLM does not sample so",
}
