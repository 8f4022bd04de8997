"""SGLang: its command line and environment, what it can do, how to read its queue.

Read in the sources of 0.5.23 (the wheel's folder sglang/srt); not run on a GPU yet. What was
seen, and what its weight endpoints take, is in docs/engines-sglang.md.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from enginehouse.client.transport import WireRequest
from enginehouse.client.wire import AdapterEndpoints, Tokenizing, Wire
from enginehouse.core.errors import ConfigurationError, FlagError
from enginehouse.core.sampler import Capabilities, Capability, Load
from enginehouse.diagnosis import Diagnosis, LogProfile, diagnose_log
from enginehouse.dialects import sglang as dialects
from enginehouse.dialects.openai_replies import decode_reply, decode_tokenize, encode_tokenize
from enginehouse.engines import arguments
from enginehouse.engines.arguments import Argument
from enginehouse.engines.base import (
    LaunchContext,
    ModelFormat,
    Quirk,
    demand_api_key,
)
from enginehouse.engines.options import DType, ServerOptions
from enginehouse.engines.sglang import diagnosis as sglang_diagnosis
from enginehouse.engines.sglang.history import IGNORED_FIELDS, REMOVED_FLAGS
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

_INHERITED = re.compile(
    r"PATH|HOME|LD_LIBRARY_PATH|(CUDA|NCCL|HF|SGLANG|SGL|FLASHINFER|TRITON)_.*"
    r"|(https?|no)_proxy|(HTTPS?|NO)_PROXY"
)
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
_HTTP = "a server of ours answers HTTP"
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
_LORA_RANK = 16  # vLLM's default; SGLang has none, and asks for one where no adapter is named
_METRIC = re.compile(
    r"^sglang:(num_running_reqs|num_queue_reqs|token_usage|prompt_tokens_total"
    r"|generation_tokens_total|num_retracted_requests_total|cached_tokens_total)"
    r"(?:\{(.*)\})? (\S+)",
    re.MULTILINE,
)
# With priority scheduling a queue is told as a whole (priority="") and, again, by priority.
_PART = re.compile(r'\bpriority="[^"]')


class SglangLoadSignal:
    """SGLang's Prometheus metrics (--enable-metrics), summed over data-parallel replicas.

    The queue is as of the last batch that was logged (every 40 decoding steps); tokens are counted
    when their request ends.
    """

    path = "/metrics"

    def parse(self, body: str) -> Load | None:
        """The queue, or None if the body has no queue metrics."""
        found: dict[str, list[float]] = {}
        for name, labels, value in _METRIC.findall(body):
            if name.endswith("_total") or not _PART.search(labels):
                found.setdefault(name, []).append(float(value))
        if "num_running_reqs" not in found or "num_queue_reqs" not in found:
            return None
        usage = found.get("token_usage")
        prompt_tokens = _total(found.get("prompt_tokens_total"))
        return Load(
            running=int(sum(found["num_running_reqs"])),
            waiting=int(sum(found["num_queue_reqs"])),
            kv_cache_usage=max(usage) if usage else None,
            prompt_tokens=prompt_tokens,
            generation_tokens=_total(found.get("generation_tokens_total")),
            preemptions=_total(found.get("num_retracted_requests_total")),
            prefix_cache_queries=prompt_tokens,
            prefix_cache_hits=_total(found.get("cached_tokens_total")),
        )


def _total(values: list[float] | None) -> int | None:
    return int(sum(values)) if values else None


class _Models(msgspec.Struct):
    class Card(msgspec.Struct):
        id: str
        parent: str | None = None

    data: list[Card]


_models = msgspec.json.Decoder(_Models)


def adapted(base: str, adapter: str) -> str:
    """The model that a request names to be answered by an adapter.

    The adapter's name alone would be answered by the base model, as any unknown name is.
    """
    return f"{base}:{adapter}"


def decode_models(body: bytes) -> tuple[str, ...]:
    """See Wire.decode_models: adapters come by the names that requests must use."""
    cards = decode_reply(_models, body).data
    return tuple(adapted(card.parent, card.id) if card.parent else card.id for card in cards)


def _load_adapter(name: str, path: str) -> WireRequest:
    body = msgspec.json.encode({"lora_name": name, "lora_path": path})
    return WireRequest("POST", "/load_lora_adapter", body, administers=True)


def _unload_adapter(name: str) -> WireRequest:
    body = msgspec.json.encode({"lora_name": name})
    return WireRequest("POST", "/unload_lora_adapter", body, administers=True)


SGLANG = Wire(
    chat=dialects.chat,
    completions=dialects.completions,
    decode_models=decode_models,
    tokenizing=Tokenizing(path="/tokenize", encode=encode_tokenize, decode=decode_tokenize),
    adapters=AdapterEndpoints(load=_load_adapter, unload=_unload_adapter, model=adapted),
)
# A seed counts only under --enable-deterministic-inference; log-probabilities of a prompt are had
# from /generate only.
_LACKS = {Capability.SEED, Capability.PROMPT_LOGPROBS}


class SglangEngine:
    """SGLang, in its CUDA build."""

    name = "sglang"
    tried: str | None = None
    wire = SGLANG
    model_format: ModelFormat = "checkpoint"
    health_path = "/health"
    models_path = "/v1/models"
    canary_path = "/v1/completions"
    version_path = "/server_info"
    guarded_path: str | None = None
    load_signal = SglangLoadSignal()
    open_dtypes: frozenset[DType | None] = frozenset()

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - one is known
        """What its OpenAI endpoints do; and the fields that they accept and ignore."""
        return Capabilities(
            supports=frozenset(Capability) - _LACKS,
            ignored=IGNORED_FIELDS,
        )

    def check(self, options: ServerOptions, *, environment: EngineEnvironment) -> None:
        """Raise ConfigurationError or FlagError for what SGLang would not do; start nothing."""
        demand_api_key(options)
        for name in options.env_vars:
            if name in _OURS:
                raise ConfigurationError(f"env_vars cannot set {name}", fix=_OURS[name])
        extra = arguments.read(arguments.split(options.extra_args))
        _check_options(options, {argument.flag for argument in extra})
        _check_extra(options, extra)
        label = f"sglang {environment.version} ({environment.variant})"
        given = arguments.read(tuple(_typed(options)))
        arguments.check(
            (*given, *extra), flags=environment.flags, removed=REMOVED_FLAGS, engine=label
        )

    def command(self, options: ServerOptions, *, context: LaunchContext) -> Command:
        """The command line and the whole environment of a server."""
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

    def quirks(
        self,
        options: ServerOptions,  # noqa: ARG002
        *,
        environment: EngineEnvironment,  # noqa: ARG002
    ) -> tuple[Quirk, ...]:
        """None is known."""
        return ()

    @property
    def log_profile(self) -> LogProfile:
        """How its logs are read."""
        return sglang_diagnosis.PROFILE

    def diagnose(self, log: Path, *, exit_code: int | None = None) -> Diagnosis | None:
        """By failures.yaml and the shared rules; otherwise the error that ended it."""
        return diagnose_log(log, profile=self.log_profile, exit_code=exit_code)


def _typed(options: ServerOptions) -> Iterator[str]:
    """The typed options that were given, as flags; what is SGLang's own way needs none."""
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
    """What we want of every server, where this version has it and the user does not say else."""
    flags = context.environment.flags

    def free(flag: str) -> bool:
        return (not flags or flag in flags) and flag not in named

    if free("--enable-metrics"):
        yield "--enable-metrics"
    if free("--sampling-defaults"):
        yield from ("--sampling-defaults", "openai")  # else the checkpoint's file sets sampling
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
    env = {k: v for k, v in os.environ.items() if _INHERITED.fullmatch(k) and k not in _OURS}
    # A script would otherwise import whatever lies beside it first.
    env["PYTHONSAFEPATH"] = "1"
    # Above the client's own idle limit, or a request meets a connection that is being closed.
    env["SGLANG_TIMEOUT_KEEP_ALIVE"] = "120"
    # Else every look at /health takes a second and, on an idle server, a token.
    env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] = "0"
    # The model's log-probabilities, as vLLM gives them, and not those after temperature and top_p.
    env["SGLANG_RETURN_ORIGINAL_LOGPROB"] = "1"
    env["SGLANG_WARMUP_TIMEOUT"] = str(math.ceil(context.start_limit))
    if options.api_key:
        env["SGLANG_SERVER_API_KEY"] = options.api_key
    env["SGLANG_SERVER_ADMIN_KEY"] = context.admin_key
    env |= options.env_vars
    folder = context.environment.executable.parent
    env["PATH"] = f"{folder}{os.pathsep}{env.get('PATH', os.defpath)}"
    return env


def _is_set(options: ServerOptions, field: str) -> bool:
    value = getattr(options, field)
    return value is not None and not (field in {"trust_remote_code", "enable_lora"} and not value)


def _check_options(options: ServerOptions, named: set[str]) -> None:
    """Raise ConfigurationError for options that SGLang cannot have together."""
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
    if not options.enable_lora and (options.max_loras or options.max_lora_rank):
        raise ConfigurationError(
            "max_loras and max_lora_rank do nothing without enable_lora", fix="set enable_lora"
        )
    replicas = options.data_parallel_size or 1
    if options.enable_lora and replicas > 1 and "--lora-paths" not in named:
        raise ConfigurationError(
            "SGLang loads no adapters while it runs with data_parallel_size > 1",
            why="its load_lora_adapter refuses data-parallel replicas",
            fix="name the adapters in extra_args (--lora-paths NAME=PATH), or use tensor "
            "parallelism, or several servers",
        )


def _check_extra(options: ServerOptions, extra: tuple[Argument, ...]) -> None:
    fields = {flag: field for field, flag in _OPTIONS.items()} | _OTHER_SPELLINGS
    for argument in extra:
        if argument.flag in _FORBIDDEN:
            raise ConfigurationError(
                f"extra_args cannot have {argument.flag}", fix=_FORBIDDEN[argument.flag]
            )
        if argument.given.partition("=")[0] != argument.flag:
            raise FlagError(
                f"SGLang does not understand {argument.given}", fix=f"write {argument.flag}"
            )
        field = fields.get(argument.flag)
        if argument.flag == "--chunked-prefill-size" and options.enable_chunked_prefill is not None:
            field = "enable_chunked_prefill"
        if field and _is_set(options, field):
            raise ConfigurationError(
                f"{argument.given} in extra_args contradicts the option {field}",
                fix=f"give one of the two; {field} is checked before anything starts",
            )
