"""vLLM's command line and environment, and what of them is refused before anything starts.

Read in the sources of 0.32.0 and tried on its CPU build, unless a comment says otherwise.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from enginehouse.core.errors import ConfigurationError, FlagError, UnsupportedError
from enginehouse.engines import arguments
from enginehouse.engines.addresses import own_address
from enginehouse.engines.base import LaunchContext, LoraFlags, Quirk
from enginehouse.engines.checks import (
    is_given,
    require_allowed,
    require_free_variables,
    require_given_once,
    require_lora_enabled,
)
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.variables import inherited_variables, path_with
from enginehouse.engines.vllm import over_ray
from enginehouse.engines.vllm.history import REMOVED_FLAGS
from enginehouse.engines.vllm.quirks import (
    LORA_PROMPT_LOGPROBS,
    NAMED_TOKENS,
    SEEDED_CHUNKED_PREFILL,
)
from enginehouse.engines.vllm.tools import tool_flags
from enginehouse.engines.vllm.wire import VLLM_WEIGHTS
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

LORA = LoraFlags(ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512), default_rank=16)
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
    "--uds": "Enginehouse asks servers on a port",
    "--headless": "Enginehouse asks servers over HTTP",
    "--grpc": "Enginehouse asks servers over HTTP",
    "--ssl-certfile": "put a reverse proxy with TLS before the server",
    "--ssl-keyfile": "put a reverse proxy with TLS before the server",
}
_SWAPPING = (VLLM_WEIGHTS.sleep_flag, "--weight-transfer-config")  # of no use without the endpoints
_GUARD = ("--middleware", "enginehouse_guard.Guard")
_UNLOADING = ("--middleware", "enginehouse_unloading.Unloading")
_COMMAND = "vllm.entrypoints.cli.main"
_SERVER = "vllm.entrypoints.openai.api_server"
_FEW_CORES = 4
_GIB = 1 << 30
# White space is where a small model under a schema loops until max_tokens; forbidding it needs the
# backend named. It is llguidance: xgrammar 0.2.8 then still forces a space behind some commas (and
# behind all in versions of vLLM that give it no separators, vllm#58067), and never lets a string
# with a length or a pattern hold a quote or a line's end.
_STRUCTURED = '{"disable_any_whitespace": true, "backend": "guidance"}'


def check(options: ServerOptions, environment: EngineEnvironment) -> None:
    """Raise what ServedEngine.check does."""
    require_free_variables(options, _OURS)
    require_lora_enabled(options)
    _require_rank(options, environment)
    extra = arguments.read(arguments.split(options.extra_args))
    require_allowed(extra, _FORBIDDEN)
    fields = {flag: field for field, flag in _OPTIONS.items()} | _SHORT
    for argument in extra:
        positive = re.sub(r"^--no-", "--", argument.flag)
        require_given_once(options, argument, fields.get(positive))
    arguments.check(
        (*arguments.read(tuple(_typed(options))), *extra),
        flags=environment.flags,
        removed=REMOVED_FLAGS,
        engine=f"vllm {environment.version} ({environment.variant})",
    )
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


def _require_rank(options: ServerOptions, environment: EngineEnvironment) -> None:
    rank = options.max_lora_rank
    flag = environment.flags.get(LORA.max_rank)
    ranks = sorted(int(c) for c in flag.choices) if flag and flag.choices else list(LORA.ranks)
    if rank is None or rank in ranks:
        return
    larger = next((r for r in ranks if r > rank), None)
    raise FlagError(
        f"vllm {environment.version} cannot have max_lora_rank {rank}",
        why=f"it must be one of {', '.join(map(str, ranks))}",
        fix=f"use {larger}" if larger else f"train the adapter with a rank of at most {ranks[-1]}",
    )


def command(options: ServerOptions, context: LaunchContext) -> Command:
    """A server's command line and whole environment."""
    environment = context.environment
    extra = arguments.split(options.extra_args)
    read = arguments.read(extra)
    named = {argument.flag for argument in read}
    if spans := over_ray.is_over_ray(read):
        extra = tuple(over_ray.without_ours(read))
        named -= {over_ray.NODES, over_ray.PORT}
    typed = tuple(_typed(_with_spare_place(options, environment, named)))
    argv: tuple[str, ...] = (
        *_program(context),
        *("--served-model-name", context.served_model_name),
        *("--host", options.host, "--port", str(context.port)),
        *typed,
        *_defaults(options, environment, named | set(typed)),
        *tool_flags(Path(context.model_path), given=named, known=environment.flags),
        *extra,
        *_head_flags(named),
        *(_UNLOADING if _has_spare_place(options, environment) else ()),
        *_GUARD,  # the last middleware is asked first
    )
    if spans:
        argv = over_ray.head(argv, read, context)
    return Command(argv=argv, env=_variables(options, context, named))


def span_flags(nodes: int, *, port: int, over: str | None = None) -> tuple[str, ...]:
    """See SupportsNodes; the ports are where the head meets the others."""
    if over == "ray":
        return over_ray.span_flags(nodes, port=port)
    return (
        *("--nnodes", str(nodes)),
        *("--master-port", str(port)),
        *("--data-parallel-rpc-port", str(port + 1)),
    )


def meeting_ports(options: ServerOptions) -> tuple[int, ...]:
    """See SupportsNodes."""
    values = {a.flag: a.values for a in arguments.read(arguments.split(options.extra_args))}
    word, *_ = values.get(over_ray.PORT) or ("",)
    if over_ray.NODES not in values or not word.isdecimal():
        return ()
    return tuple(port for port in (int(word), int(word) + 1) if port < 65_536)


def _head_flags(named: set[str]) -> Iterator[str]:
    if "--nnodes" in named and "--master-addr" not in named:
        # as an address: a socket cannot be bound to a name
        yield from ("--node-rank", "0", "--master-addr", own_address())


def worker(options: ServerOptions, *, context: LaunchContext, head: str, node: int) -> Command:
    """See SupportsNodes."""
    environment = context.environment
    extra = arguments.split(options.extra_args)
    read = arguments.read(extra)
    named = {argument.flag for argument in read}
    if over_ray.is_over_ray(read):
        argv = over_ray.worker(read, context, first=head)
        return Command(argv=argv, env=_variables(options, context, named))
    program = _program(context)
    if _COMMAND not in program:
        raise UnsupportedError(
            f"a server of vllm {environment.version} ({environment.variant}) cannot span machines",
            why="`vllm serve` starts the parts on the others, and does not run in this build",
            fix="use the CUDA build, or a server on each machine",
        )
    typed = tuple(_typed(_with_spare_place(options, environment, named)))
    # without servers for HTTP, of which their number is asked for
    taken = {*named, *typed, "--api-server-count"}
    argv = (
        *program,
        "--headless",
        *typed,
        *_defaults(options, environment, taken),
        *extra,
        *("--node-rank", str(node), "--master-addr", head),
    )
    return Command(argv=argv, env=_variables(options, context, named))


def quirks(options: ServerOptions, environment: EngineEnvironment) -> tuple[Quirk, ...]:
    """What requests spoil for others, and the crashes of the CPU build. See SupportsQuirks."""
    if not options.avoid_quirks:
        return ()
    if environment.variant != "cpu":
        return (NAMED_TOKENS,)
    named = {argument.flag for argument in arguments.read(arguments.split(options.extra_args))}
    avoided = []
    if SEEDED_CHUNKED_PREFILL.avoided in _defaults(
        options, environment, named | set(_typed(options))
    ):
        avoided.append(SEEDED_CHUNKED_PREFILL)
    if options.enable_lora or "--enable-lora" in named:
        avoided.append(LORA_PROMPT_LOGPROBS)
    return (*avoided, NAMED_TOKENS)


def _has_spare_place(options: ServerOptions, environment: EngineEnvironment) -> bool:
    """Whether one place for adapters must stay empty.

    The CPU build's kernels take a request without an adapter for one of the last place's
    (index -1): it would be answered by whatever adapter is there. Places are filled from the first
    one on, so the last of n + 1 stays empty while the engine holds n adapters at most: those that
    are unloaded must leave it, too (_UNLOADING).
    """
    return environment.variant == "cpu" and options.enable_lora and options.avoid_quirks


def _with_spare_place(
    options: ServerOptions, environment: EngineEnvironment, named: set[str]
) -> ServerOptions:
    """The options, with one more place for adapters than will be used."""
    if not _has_spare_place(options, environment) or "--max-loras" in named:
        return options
    places = (options.max_loras or 1) + 1  # 1 is vLLM's default
    return options.model_copy(update={"max_loras": places})


def _program(context: LaunchContext) -> tuple[str, ...]:
    """`vllm serve`, except in a version or a build that does not have it."""
    environment = context.environment
    python = str(environment.executable)
    # Descriptions that an earlier Enginehouse cached do not say.
    module = environment.entry_module or (_SERVER if environment.variant == "cpu" else _COMMAND)
    if module == _COMMAND:
        return (python, "-m", module, "serve", context.model_path)
    return (python, "-m", module, "--model", context.model_path)


def _typed(options: ServerOptions) -> Iterator[str]:
    """The typed options that were given, as flags."""
    for field, flag in _OPTIONS.items():
        value = getattr(options, field)
        if not is_given(options, field):
            continue
        if isinstance(value, bool):
            yield flag if value else f"--no-{flag[2:]}"
        else:
            yield from (flag, str(value))


def _defaults(
    options: ServerOptions, environment: EngineEnvironment, named: set[str]
) -> Iterator[str]:
    """The flags that every server gets, where this version has them and the user left them open."""

    def free(flag: str) -> bool:
        known = not environment.flags or flag in environment.flags
        return known and not named & {flag, f"--no-{flag[2:]}"}

    if free("--generation-config"):
        yield from ("--generation-config", "vllm")  # or the checkpoint's file sets sampling
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


def _variables(
    options: ServerOptions, context: LaunchContext, named: set[str]
) -> Mapping[str, str]:
    env = inherited_variables("TRANSFORMERS_CACHE", "(CUDA|NCCL|HF|VLLM)_.*", without=_OURS)
    # python -m would otherwise import what lies in the working directory first.
    env["PYTHONSAFEPATH"] = "1"
    env["VLLM_NO_USAGE_STATS"] = "1"
    # Above the client's own idle limit, or a request meets a connection that is being closed.
    env["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "120"
    env["VLLM_PORT"] = str(context.internal_port)
    env["VLLM_ENGINE_READY_TIMEOUT_S"] = str(math.ceil(context.start_limit))
    if context.environment.variant == "cpu":
        env = (
            _cpu_variables(options, named, cores=context.cores or _cores())
            | env
            | {"VLLM_TARGET_DEVICE": "cpu"}
        )
    if options.enable_lora or "--enable-lora" in named:
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if options.enable_weight_swap:
        env["VLLM_SERVER_DEV_MODE"] = "1"
    env["GUARD_ADMIN_KEY"] = context.admin_key
    if options.api_key:
        env["GUARD_API_KEY"] = options.api_key
    env |= options.env_vars
    guard = str(PAYLOADS / "middleware")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [guard, env.get("PYTHONPATH")]))
    env["PATH"] = path_with(context.environment.executable, env.get("PATH"))
    return env


def _cpu_variables(options: ServerOptions, named: set[str], *, cores: int) -> dict[str, str]:
    env: dict[str, str] = {}
    sized = named & {"--kv-cache-memory-bytes", "--gpu-memory-utilization"}
    if not sized and options.gpu_memory_utilization is None:
        share = psutil.virtual_memory().total // (8 * _GIB)
        env["VLLM_CPU_KVCACHE_SPACE"] = str(min(4, max(1, share)))
    if cores <= _FEW_CORES:
        env["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"  # 1.31 times the tokens/s on 2 cores
        sizes = (options.tensor_parallel_size, options.pipeline_parallel_size)
        parallel = named & {"-tp", "-pp", "-dp", *(_OPTIONS[f] for f in _SHORT.values())}
        if not parallel and {*sizes, options.data_parallel_size} <= {None, 1}:
            # The engine does the work itself instead of starting a worker, which imports torch and
            # vLLM all over: ready in 0.68 of the time, 1.09 times the tokens/s on 2 cores.
            env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(cores)}
    return env


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
