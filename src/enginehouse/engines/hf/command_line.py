"""The hf server's command line and environment, and what is refused before anything starts.

Its flags are those of payloads/hf_server/options.py, whatever version of transformers it runs with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from enginehouse.core.errors import ConfigurationError
from enginehouse.engines import arguments
from enginehouse.engines.base import LaunchContext
from enginehouse.engines.checks import (
    require_allowed,
    require_free_variables,
    require_lora_enabled,
)
from enginehouse.engines.hf.history import REMOVED_FLAGS
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.variables import inherited_variables
from enginehouse.processes.process import Command
from enginehouse.provisioning.description import Flag
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

API_KEY_VARIABLE = "HF_SERVER_API_KEY"
ADMIN_KEY_VARIABLE = "HF_SERVER_ADMIN_KEY"
_RESERVED = dict.fromkeys((API_KEY_VARIABLE, ADMIN_KEY_VARIABLE), "set api_key")
_OPTIONS = {
    "dtype": "--dtype",
    "max_model_len": "--max-model-len",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "trust_remote_code": "--trust-remote-code",
    "enable_lora": "--enable-lora",
    "max_loras": "--max-loras",
    "max_lora_rank": "--max-lora-rank",
}
_ONE_DEVICE = "leave it out: it runs on one device; for several use --engine vllm"
# Options that it has no choice in: the only value, and what to do instead.
_WITHOUT: Mapping[str, tuple[Any, str]] = {
    "tensor_parallel_size": (1, _ONE_DEVICE),
    "pipeline_parallel_size": (1, _ONE_DEVICE),
    "data_parallel_size": (1, "start several servers, or use --engine vllm"),
    "enable_prefix_caching": (
        False,
        "leave it out: every prompt is computed whole; --engine vllm has a prefix cache",
    ),
    "enable_chunked_prefill": (
        True,
        "leave it out: a prompt longer than max_num_batched_tokens is always computed in pieces",
    ),
    "enforce_eager": (True, "leave it out: it compiles nothing"),
    "enable_weight_swap": (False, "use --engine vllm, or serve each checkpoint by itself"),
}
_OWN_FLAGS = {
    "--device": Flag(takes_value=True, choices=("auto", "cpu", "cuda")),
    "--kv-cache-memory-bytes": Flag(takes_value=True),
    "--max-logprobs": Flag(takes_value=True),
    "--logprobs-mode": Flag(takes_value=True, choices=("raw_logprobs", "processed_logprobs")),
}
_FORBIDDEN = {
    "--model": "the model is the first argument of serve",
    "--served-model-name": "use the option served_model_name",
    "--host": "use the option host",
    "--port": "use the option port",
    "--allow-runtime-lora-updating": "use the option enable_lora",
} | {flag: f"use the option {field}" for field, flag in _OPTIONS.items()}


def check(options: ServerOptions, environment: EngineEnvironment) -> None:
    """Raise what ServedEngine.check does."""
    for field, (only, fix) in _WITHOUT.items():
        if (value := getattr(options, field)) not in (None, only):
            raise ConfigurationError(f"hf cannot have {field} {value}", fix=fix)
    require_lora_enabled(options)
    require_free_variables(options, _RESERVED)
    extra = arguments.read(arguments.split(options.extra_args))
    require_allowed(extra, _FORBIDDEN)
    label = f"hf (transformers {environment.version}, {environment.variant})"
    arguments.check(extra, flags=_OWN_FLAGS, removed=REMOVED_FLAGS, engine=label)


def command(options: ServerOptions, context: LaunchContext) -> Command:
    """A server's command line and whole environment."""
    argv = (
        *(str(context.environment.executable), str(PAYLOADS / "hf_server")),
        *("--model", context.model_path, "--served-model-name", context.served_model_name),
        *("--host", options.host, "--port", str(context.port)),
        *_typed(options),
        *(("--allow-runtime-lora-updating",) if options.enable_lora else ()),
        *arguments.split(options.extra_args),
    )
    env = inherited_variables("TRANSFORMERS_CACHE", "(CUDA|HF|OMP|MKL|KMP|GOMP|PYTORCH)_.*")
    env |= {"PYTHONNOUSERSITE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.api_key:
        env[API_KEY_VARIABLE] = options.api_key
    env[ADMIN_KEY_VARIABLE] = context.admin_key
    return Command(argv=argv, env=env | dict(options.env_vars))


def _typed(options: ServerOptions) -> Iterator[str]:
    """The typed options that were given, as flags."""
    for field, flag in _OPTIONS.items():
        value = getattr(options, field)
        if value is True:
            yield flag
        elif value not in (None, False):
            yield from (flag, str(value))
