"""SGLang's command line and environment, and what of them is refused before anything starts.

Read in the sources of 0.5.23 (the wheel's folder sglang/srt); not run on a GPU yet. What was
seen, and what its weight endpoints take, is in docs/engines-sglang.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from enginehouse.core.errors import ConfigurationError, FlagError
from enginehouse.engines import arguments
from enginehouse.engines.base import LaunchContext, LoraFlags
from enginehouse.engines.checks import (
    require_allowed,
    require_free_variables,
    require_given_once,
    require_lora_enabled,
)
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.sglang.history import REMOVED_FLAGS
from enginehouse.engines.variables import inherited_variables, path_with
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

LORA = LoraFlags(enable=("--enable-lora", "--lora-paths"))
_OURS = {
    "SGLANG_SERVER_API_KEY": "set api_key",
    "SGLANG_SERVER_ADMIN_KEY": "leave it out: it is generated",
}
_OPTIONS = {
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "data_parallel_size": "--data-parallel-size",
    "dtype": "--dtype",
    "max_model_len": "--context-length",
    "gpu_memory_utilization": "--mem-fraction-static",
    "max_num_seqs": "--max-running-requests",
    "max_num_batched_tokens": "--chunked-prefill-size",
    "max_lora_rank": "--max-lora-rank",
}
_OTHER_SPELLINGS = {
    "--tp-size": "tensor_parallel_size",
    "--pp-size": "pipeline_parallel_size",
    "--dp-size": "data_parallel_size",
    "--disable-radix-cache": "enable_prefix_caching",
    "--disable-cuda-graph": "enforce_eager",
    "--cuda-graph-backend-decode": "enforce_eager",
    "--cuda-graph-backend-prefill": "enforce_eager",
    "--trust-remote-code": "trust_remote_code",
    "--enable-lora": "enable_lora",
    "--max-loras-per-batch": "max_loras",
}
_EAGER = ("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled")
_TLS = "put a reverse proxy with TLS before the server"
_HTTP = "Enginehouse asks servers over HTTP"
_FORBIDDEN = {
    "--host": "use the option host",
    "--port": "use the option port",
    "--nccl-port": "leave it out: internal ports are leased",
    "--api-key": "use the option api_key, which keeps it off the command line",
    "--admin-api-key": "leave it out: it is generated",
    "--model-path": "the model is the one that is served",
    "--model": "the model is the one that is served",
    "--served-model-name": "use the option served_model_name",
    "--config": "write the engine's options into extra_args, or use the typed ones",
    "--ssl-certfile": _TLS,
    "--ssl-keyfile": _TLS,
    "--smg-grpc-mode": _HTTP,
    "--grpc-mode": _HTTP,
    "--encoder-only": _HTTP,
}
_LORA_RANK = 16  # SGLang has no default, and wants a rank where no adapter is named


def check(options: ServerOptions, environment: EngineEnvironment) -> None:
    """Raise what ServedEngine.check does."""
    require_free_variables(options, _OURS)
    require_lora_enabled(options)
    extra = arguments.read(arguments.split(options.extra_args))
    _require_consistent(options, {argument.flag for argument in extra})
    require_allowed(extra, _FORBIDDEN)
    fields = {flag: field for field, flag in _OPTIONS.items()} | _OTHER_SPELLINGS
    if options.enable_chunked_prefill is not None:
        fields["--chunked-prefill-size"] = "enable_chunked_prefill"
    for argument in extra:
        if argument.given.partition("=")[0] != argument.flag:
            raise FlagError(
                f"SGLang does not understand {argument.given}", fix=f"write {argument.flag}"
            )
        require_given_once(options, argument, fields.get(argument.flag))
    arguments.check(
        (*arguments.read(tuple(_typed(options))), *extra),
        flags=environment.flags,
        removed=REMOVED_FLAGS,
        engine=f"sglang {environment.version} ({environment.variant})",
    )


def _require_consistent(options: ServerOptions, named: set[str]) -> None:
    """Refuse options that SGLang cannot have together."""
    if options.max_num_batched_tokens and options.enable_chunked_prefill is False:
        raise ConfigurationError(
            "max_num_batched_tokens and enable_chunked_prefill=false contradict one another",
            why="SGLang has one flag for both, --chunked-prefill-size, which -1 turns off",
            fix="leave one of them out; --max-prefill-tokens in extra_args limits a whole batch",
        )
    if options.enable_weight_swap:
        raise ConfigurationError(
            "enginehouse does not swap the weights of an SGLang server",
            fix="use --engine vllm, or serve each checkpoint by itself",
        )
    replicas = options.data_parallel_size or 1
    if options.enable_lora and replicas > 1 and "--lora-paths" not in named:
        raise ConfigurationError(
            "SGLang loads no adapters while it runs with data_parallel_size > 1",
            why="its load_lora_adapter refuses data-parallel replicas",
            fix="name the adapters in extra_args (--lora-paths NAME=PATH), or use tensor "
            "parallelism, or several servers",
        )


def command(options: ServerOptions, context: LaunchContext) -> Command:
    """A server's command line and whole environment."""
    extra = arguments.split(options.extra_args)
    named = {argument.flag for argument in arguments.read(extra)}
    argv = (
        *(str(context.environment.executable), str(PAYLOADS / "serve_sglang.py")),
        *("--model-path", context.model_path),
        *("--served-model-name", context.served_model_name),
        *("--host", options.host, "--port", str(context.port)),
        *_typed(options),
        *_defaults(options, context, named),
        *extra,
    )
    return Command(argv=argv, env=_variables(options, context))


def _typed(options: ServerOptions) -> Iterator[str]:
    """The typed options that were given, as flags; SGLang's own defaults need none."""
    for field, flag in _OPTIONS.items():
        value = getattr(options, field)
        if value is not None:
            yield from (flag, str(value))
    if options.enable_chunked_prefill is False:
        yield from ("--chunked-prefill-size", "-1")
    if options.enable_prefix_caching is False:
        yield "--disable-radix-cache"
    if options.enforce_eager:
        yield from _EAGER
    if options.trust_remote_code:
        yield "--trust-remote-code"
    if options.enable_lora:
        yield "--enable-lora"
    if options.max_loras is not None:
        # requests for the base model take one of them
        yield from ("--max-loras-per-batch", str(options.max_loras + 1))


def _defaults(options: ServerOptions, context: LaunchContext, named: set[str]) -> Iterator[str]:
    """The flags that every server gets, where this version has them and the user left them open."""
    flags = context.environment.flags

    def free(flag: str) -> bool:
        return (not flags or flag in flags) and flag not in named

    if free("--enable-metrics"):
        yield "--enable-metrics"
    if free("--sampling-defaults"):
        yield from ("--sampling-defaults", "openai")  # or the checkpoint's file sets sampling
    if free("--tool-call-parser"):
        yield from ("--tool-call-parser", "auto")  # none where the chat template tells none
    if free("--constrained-json-disable-any-whitespace"):
        # where a small model under a schema loops until max_tokens
        yield "--constrained-json-disable-any-whitespace"
    if options.data_parallel_size in (None, 1) and not named & {
        "--dp-size",
        "--data-parallel-size",
    }:
        yield from ("--nccl-port", str(context.internal_port))  # replicas must not share one
    if options.enable_lora and "--lora-paths" not in named:
        if options.max_lora_rank is None and free("--max-lora-rank"):
            yield from ("--max-lora-rank", str(_LORA_RANK))
        if free("--lora-target-modules"):
            yield from ("--lora-target-modules", "all")


def _variables(options: ServerOptions, context: LaunchContext) -> Mapping[str, str]:
    env = inherited_variables("(CUDA|NCCL|HF|SGLANG|SGL|FLASHINFER|TRITON)_.*", without=_OURS)
    # A script would otherwise import what lies beside it first.
    env["PYTHONSAFEPATH"] = "1"
    # Above the client's own idle limit, or a request meets a connection that is being closed.
    env["SGLANG_TIMEOUT_KEEP_ALIVE"] = "120"
    # Without this every look at /health takes a second and, on an idle server, a token.
    env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] = "0"
    # The model's log-probabilities, as vLLM gives them, and not those after temperature and top_p.
    env["SGLANG_RETURN_ORIGINAL_LOGPROB"] = "1"
    env["SGLANG_WARMUP_TIMEOUT"] = str(math.ceil(context.start_limit))
    if options.api_key:
        env["SGLANG_SERVER_API_KEY"] = options.api_key
    env["SGLANG_SERVER_ADMIN_KEY"] = context.admin_key
    env |= options.env_vars
    env["PATH"] = path_with(context.environment.executable, env.get("PATH"))
    return env
