"""llama.cpp's llama-server: its command line, what it can do, how to read its queue and its log.

Facts below were read in the sources of build 11434 and tried on its CPU build, unless they say
else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from enginehouse.client.unchecked import Unchecked
from enginehouse.client.wire import Tokenizing, Wire
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capabilities, Capability, Load
from enginehouse.diagnosis import Diagnosis, LogProfile, diagnose_log
from enginehouse.dialects import llamacpp
from enginehouse.dialects.openai_replies import decode_models, decode_tokenize
from enginehouse.engines import arguments
from enginehouse.engines.arguments import Argument
from enginehouse.engines.base import (
    LaunchContext,
    ModelFormat,
    Quirk,
    demand_api_key,
)
from enginehouse.engines.llamacpp import diagnosis as llamacpp_diagnosis
from enginehouse.engines.options import DType, ServerOptions
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.gguf_metadata import read_metadata

_INHERITED = re.compile(
    r"PATH|HOME|LD_LIBRARY_PATH|(CUDA|GGML|OMP)_.*|(https?|no)_proxy|(HTTPS?|NO)_PROXY"
)
DEFAULT_SEQUENCES = 16
_DEFAULT_CONTEXT = 4096  # tokens, where the model's own is longer: each sequence's is set aside
# Every kept connection holds a thread, and the health check needs one, too.
_HTTP_THREADS = 544  # above the client's most requests in flight
_OPTIONS = {"max_num_batched_tokens": "--batch-size"}
_SWITCHES = {"enable_prefix_caching": ("--cache-prompt", "--no-cache-prompt")}
_WITHOUT = {
    "tensor_parallel_size": "it shares the layers out over every GPU that it sees; "
    "extra_args --split-mode and --tensor-split say how",
    "pipeline_parallel_size": "it shares the layers out over every GPU that it sees",
    "data_parallel_size": "start several servers",
    "gpu_memory_utilization": "it takes what the model needs; extra_args --gpu-layers N takes less",
    "enable_chunked_prefill": "it always computes long prompts in pieces; extra_args --ubatch-size",
    "enforce_eager": "it compiles nothing",
    "trust_remote_code": "a GGUF file holds no code",
    "enable_lora": "it loads adapters when it starts: extra_args --lora FILE.gguf, "
    'and a request may weigh them with extra={"lora": [{"id": 0, "scale": 1.0}]}',
    "max_loras": "it loads adapters when it starts: extra_args --lora FILE.gguf",
    "enable_weight_swap": "serve each GGUF file by itself; --engine vllm swaps checkpoints",
    "max_lora_rank": "an adapter of any rank can be loaded: extra_args --lora FILE.gguf",
}
_FORBIDDEN = {
    "use the option host": ("--host",),
    "use the option port": ("--port",),
    "use the option api_key, which keeps it off the command line": ("--api-key", "--api-key-file"),
    "the model is the first argument of serve": (
        *(
            "--model",
            "-m",
            "--model-url",
            "-mu",
            "--docker-repo",
            "-dr",
            "--hf-repo",
            "-hf",
            "-hfr",
        ),
        *("--hf-file", "-hff", "--models-dir", "--models-preset"),
    ),
    "use the option served_model_name": ("--alias", "-a"),
    "use the option max_model_len, which counts one sequence's tokens": ("--ctx-size", "-c"),
    "use the option max_num_seqs": ("--parallel", "-np"),
    "use the option max_num_batched_tokens": ("--batch-size", "-b"),
    "use the option enable_prefix_caching": ("--cache-prompt", "--no-cache-prompt"),
    "put a reverse proxy with TLS before the server": ("--ssl-key-file", "--ssl-cert-file"),
    "a server of ours generates": ("--embedding", "--embeddings", "--rerank", "--reranking"),
    "our addresses have no prefix": ("--api-prefix",),
    "the server is ready for as long as it runs": ("--sleep-idle-seconds",),
    "an answer that outgrows the context is an error": ("--context-shift",),
}
_WHY_FORBIDDEN = {flag: why for why, flags in _FORBIDDEN.items() for flag in flags}
AMX = Quirk(
    name="weight repacking with AMX",
    kills="a server on a processor with AMX, at its warm-up",
    avoided="--no-repack",
)
# Accepted and ignored, like every field that it does not know: those that others do know.
_IGNORED = {
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
_METRIC = re.compile(
    r"^llamacpp:(requests_processing|requests_deferred|prompt_tokens_total|tokens_predicted_total"
    r"|prompt_tokens_cached_total|n_decode_total)(?:\{.*\})? (\S+)",
    re.MULTILINE,
)


class LlamaCppLoadSignal:
    """llama-server's Prometheus metrics. It counts a request's tokens when it ends."""

    path = "/metrics"

    def parse(self, body: str) -> Load | None:
        """The queue, or None if the body has no queue metrics."""
        found = {name: int(float(value)) for name, value in _METRIC.findall(body)}
        if "requests_processing" not in found or "requests_deferred" not in found:
            return None
        computed, cached = found.get("prompt_tokens_total"), found.get("prompt_tokens_cached_total")
        return Load(
            running=found["requests_processing"],
            waiting=found["requests_deferred"],
            prompt_tokens=computed,
            generation_tokens=found.get("tokens_predicted_total"),
            prefix_cache_queries=None if computed is None or cached is None else computed + cached,
            prefix_cache_hits=cached,
            steps=found.get("n_decode_total"),
        )


def _unchecked(body: bytes) -> Unchecked:
    return Unchecked(names=decode_models(body), context=llamacpp.decode_context(body))


class LlamaCppEngine:
    """llama-server, built here or found; one model, in a GGUF file."""

    name = "llamacpp"
    tried = "the CPU build"
    model_format: ModelFormat = "gguf"
    health_path = "/health"
    models_path = "/v1/models"
    canary_path = "/v1/completions"
    version_path = "/version"
    guarded_path: str | None = None
    load_signal = LlamaCppLoadSignal()
    open_dtypes: frozenset[DType | None] = frozenset()
    wire = Wire(
        chat=llamacpp.chat,
        completions=llamacpp.completions,
        tokenizing=Tokenizing(
            path="/tokenize", encode=llamacpp.encode_tokenize, decode=decode_tokenize
        ),
        unchecked=_unchecked,
        closes_streams=True,
    )

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - alike so far
        """What it does.

        Of several answers at once it counts the tokens of one, so they are out. It drops tools
        without a word where the chat template has no place for them, and does not enforce a
        required call where it has: schemas do that better.
        """
        lacking = {
            Capability.N,
            Capability.TOKEN_IDS,
            Capability.PROMPT_LOGPROBS,
            Capability.REGEX,
            Capability.TOOLS,
            Capability.ADAPTERS,
        }
        return Capabilities(supports=frozenset(Capability) - lacking, ignored=_IGNORED)

    def check(self, options: ServerOptions, *, environment: EngineEnvironment) -> None:
        """Raise ConfigurationError or FlagError for what it would not do; start nothing."""
        demand_api_key(options)
        _check_options(options)
        for name in options.env_vars:
            if name.startswith("LLAMA_"):
                raise ConfigurationError(
                    f"env_vars cannot set {name}",
                    fix="set api_key"
                    if name == "LLAMA_API_KEY"
                    else "write the flag in extra_args",
                )
        extra = arguments.read(arguments.split(options.extra_args))
        for argument in extra:
            if why := _WHY_FORBIDDEN.get(argument.flag):
                raise ConfigurationError(f"extra_args cannot have {argument.given}", fix=why)
        label = f"llama-server {environment.version} ({environment.variant})"
        arguments.check(extra, flags=environment.flags, removed={}, engine=label)
        _check_files(extra)

    def command(self, options: ServerOptions, *, context: LaunchContext) -> Command:
        """The command line and the whole environment of a server. Reads the model's header."""
        environment = context.environment
        extra = arguments.split(options.extra_args)
        named = {argument.flag for argument in arguments.read(extra)}
        sequences = options.max_num_seqs or DEFAULT_SEQUENCES
        length = options.max_model_len or _context_of(Path(context.model_path))
        argv = (
            *(str(environment.executable), "--model", context.model_path),
            *("--alias", context.served_model_name),
            *("--host", options.host, "--port", str(context.port)),
            *("--parallel", str(sequences), "--ctx-size", str(sequences * length)),
            *_typed(options),
            *_defaults(options, environment, named),
            *extra,
        )
        return Command(argv=argv, env=_variables(options))

    def quirks(
        self, options: ServerOptions, *, environment: EngineEnvironment
    ) -> tuple[Quirk, ...]:
        """The crash on processors with AMX, where this is one."""
        named = {argument.flag for argument in arguments.read(arguments.split(options.extra_args))}
        avoided = AMX.avoided in _defaults(options, environment, named)
        return (AMX,) if avoided else ()

    @property
    def log_profile(self) -> LogProfile:
        """How its logs are read."""
        return llamacpp_diagnosis.PROFILE

    def diagnose(self, log: Path, *, exit_code: int | None = None) -> Diagnosis | None:
        """By failures.yaml and the shared rules; otherwise the error that ended it."""
        return diagnose_log(log, profile=self.log_profile, exit_code=exit_code)


def _check_options(options: ServerOptions) -> None:
    for field, instead in _WITHOUT.items():
        if getattr(options, field) not in (None, False):
            raise ConfigurationError(f"llamacpp has no option {field}", fix=instead)
    if options.dtype not in (None, "auto"):
        raise ConfigurationError(
            f"llamacpp cannot load the weights as {options.dtype}",
            why="a GGUF file has its own types",
            fix="take another quantisation of the model; extra_args --cache-type-k and "
            "--cache-type-v say how the cache is kept",
        )


def _check_files(extra: tuple[Argument, ...]) -> None:
    """A LoRA adapter that is not there ends the server only once the model is loaded."""
    for argument in extra:
        if argument.flag != "--lora":
            continue
        for file in " ".join(argument.values).split(","):
            if not Path(file).expanduser().is_file():
                raise ConfigurationError(
                    f"there is no LoRA adapter {file}",
                    fix="give the path of a GGUF file; llama.cpp's convert_lora_to_gguf.py makes "
                    "one of a PEFT adapter",
                )


def _context_of(model: Path) -> int:
    metadata = read_metadata(model)
    own = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return min(own, _DEFAULT_CONTEXT) if isinstance(own, int) else _DEFAULT_CONTEXT


def _typed(options: ServerOptions) -> Iterator[str]:
    """The typed options that were given, as flags."""
    for field, flag in _OPTIONS.items():
        if (value := getattr(options, field)) is not None:
            yield from (flag, str(value))
    for field, (on, off) in _SWITCHES.items():
        if (value := getattr(options, field)) is not None:
            yield on if value else off


def _defaults(
    options: ServerOptions, environment: EngineEnvironment, named: set[str]
) -> Iterator[str]:
    """What we want of every server, where this version has it and the user does not say else."""

    def free(flag: str, *others: str) -> bool:
        known = not environment.flags or flag in environment.flags
        return known and not named & {flag, *others}

    yield "--metrics"
    if free("--threads-http"):
        yield from ("--threads-http", str(_HTTP_THREADS))
    if free("--jinja", "--no-jinja"):
        yield "--jinja"  # a template is read whole only with it, and older builds have it off
    if free("--no-ui", "--ui", "--no-webui", "--webui"):
        yield "--no-ui"
    if free("--offline"):
        yield "--offline"
    repacking = ("--repack", "-nr")
    if options.avoid_quirks and has_amx() and free(AMX.avoided, *repacking):
        yield AMX.avoided


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies tiles (Intel's AMX)."""
    try:
        return re.search(r"^flags\s*:.*\bamx_", cpuinfo.read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def _variables(options: ServerOptions) -> Mapping[str, str]:
    # LLAMA_ARG_… variables are flags that nobody wrote, and stay out.
    env = {name: text for name, text in os.environ.items() if _INHERITED.fullmatch(name)}
    # Threads that wait by spinning lose their turn to whoever else computes: 1.6 tokens/s instead
    # of 46 where three other programs shared two cores.
    env.setdefault("OMP_WAIT_POLICY", "passive")
    if options.api_key:
        env["LLAMA_API_KEY"] = options.api_key
    return env | dict(options.env_vars)
