"""Our own plain server over transformers (payloads/hf_server): its command line, what it can do.

Its flags are those of payloads/hf_server/options.py, whatever version of transformers it runs with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from enginehouse.client.wire import VLLM
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capabilities, Capability, Load
from enginehouse.diagnosis import Diagnosis, LogProfile, diagnose_log
from enginehouse.engines import arguments
from enginehouse.engines.base import (
    LaunchContext,
    ModelFormat,
    Quirk,
    demand_api_key,
)
from enginehouse.engines.hf import diagnosis as hf_diagnosis
from enginehouse.engines.options import DType, ServerOptions
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment, Flag
from enginehouse.provisioning.programs import PAYLOADS

API_KEY_VARIABLE = "HF_SERVER_API_KEY"
ADMIN_KEY_VARIABLE = "HF_SERVER_ADMIN_KEY"
_INHERITED = re.compile(
    r"PATH|HOME|LD_LIBRARY_PATH|TRANSFORMERS_CACHE|(CUDA|HF|OMP|MKL|KMP|GOMP|PYTORCH)_.*"
    r"|(https?|no)_proxy|(HTTPS?|NO)_PROXY"
)
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
# What it has no choice in: how it is anyway, and what to do about it.
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
}
_FORBIDDEN = {
    "--model": "the model is the first argument of serve",
    "--served-model-name": "use the option served_model_name",
    "--host": "use the option host",
    "--port": "use the option port",
    "--allow-runtime-lora-updating": "use the option enable_lora",
} | {flag: f"use the option {field}" for field, flag in _OPTIONS.items()}
_METRIC = re.compile(
    r"^hf:(num_requests_running|num_requests_waiting|prompt_tokens_total|generation_tokens_total)"
    r"(?:\{.*\})? (\S+)",
    re.MULTILINE,
)


class HfLoadSignal:
    """The server's Prometheus metrics. It counts answers, n of them for a request with n."""

    path = "/metrics"

    def parse(self, body: str) -> Load | None:
        """The queue, or None if the body has no queue metrics."""
        found = {name: int(float(value)) for name, value in _METRIC.findall(body)}
        if "num_requests_running" not in found or "num_requests_waiting" not in found:
            return None
        return Load(
            running=found["num_requests_running"],
            waiting=found["num_requests_waiting"],
            prompt_tokens=found.get("prompt_tokens_total"),
            generation_tokens=found.get("generation_tokens_total"),
        )


class HfEngine:
    """transformers behind a plain OpenAI-compatible server: a fall-back, and a reference."""

    name = "hf"
    tried = "the CPU build"
    wire = replace(VLLM, weights=None)
    model_format: ModelFormat = "checkpoint"
    health_path = "/health"
    models_path = "/v1/models"
    canary_path = "/v1/completions"
    version_path = "/version"
    guarded_path: str | None = None
    load_signal = HfLoadSignal()
    open_dtypes: frozenset[DType | None] = frozenset({None, "auto"})

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - alike so far
        """Everything but native tool calls. It refuses fields that it does not know: none is lost.

        Tools reach it in the messages, and JSON schemas constrain the calls.
        """
        return Capabilities(supports=frozenset(Capability) - {Capability.TOOLS})

    def check(self, options: ServerOptions, *, environment: EngineEnvironment) -> None:
        """Raise ConfigurationError or FlagError for what it would not do; start nothing."""
        demand_api_key(options)
        for field, (given, instead) in _WITHOUT.items():
            if getattr(options, field) not in (None, given):
                raise ConfigurationError(
                    f"hf cannot have {field} {getattr(options, field)}", fix=instead
                )
        if not options.enable_lora and (options.max_loras or options.max_lora_rank):
            raise ConfigurationError(
                "max_loras and max_lora_rank do nothing without enable_lora", fix="set enable_lora"
            )
        for name in (API_KEY_VARIABLE, ADMIN_KEY_VARIABLE):
            if name in options.env_vars:
                raise ConfigurationError(f"env_vars cannot set {name}", fix="set api_key")
        extra = arguments.read(arguments.split(options.extra_args))
        for argument in extra:
            if why := _FORBIDDEN.get(argument.flag):
                raise ConfigurationError(f"extra_args cannot have {argument.given}", fix=why)
        label = f"hf (transformers {environment.version}, {environment.variant})"
        arguments.check(extra, flags=_OWN_FLAGS, removed={}, engine=label)

    def command(self, options: ServerOptions, *, context: LaunchContext) -> Command:
        """The command line and the whole environment of a server."""
        argv = (
            *(str(context.environment.executable), str(PAYLOADS / "hf_server")),
            *("--model", context.model_path, "--served-model-name", context.served_model_name),
            *("--host", options.host, "--port", str(context.port)),
            *_typed(options),
            *(("--allow-runtime-lora-updating",) if options.enable_lora else ()),
            *arguments.split(options.extra_args),
        )
        return Command(argv=argv, env=_variables(options, context))

    def quirks(
        self,
        options: ServerOptions,  # noqa: ARG002 - none are known
        *,
        environment: EngineEnvironment,  # noqa: ARG002
    ) -> tuple[Quirk, ...]:
        """None are known."""
        return ()

    @property
    def log_profile(self) -> LogProfile:
        """How its logs are read."""
        return hf_diagnosis.PROFILE

    def diagnose(self, log: Path, *, exit_code: int | None = None) -> Diagnosis | None:
        """By failures.yaml and the shared rules; otherwise the error that ended it."""
        return diagnose_log(log, profile=self.log_profile, exit_code=exit_code)


def _typed(options: ServerOptions) -> Iterator[str]:
    """The typed options that were given, as flags."""
    for field, flag in _OPTIONS.items():
        value = getattr(options, field)
        if value is True:
            yield flag
        elif value not in (None, False):
            yield from (flag, str(value))


def _variables(options: ServerOptions, context: LaunchContext) -> Mapping[str, str]:
    env = {name: text for name, text in os.environ.items() if _INHERITED.fullmatch(name)}
    env |= {"PYTHONNOUSERSITE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.api_key:
        env[API_KEY_VARIABLE] = options.api_key
    env[ADMIN_KEY_VARIABLE] = context.admin_key
    return env | dict(options.env_vars)
