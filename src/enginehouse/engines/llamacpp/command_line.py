"""llama-server's command line and environment, and what is refused before anything starts.

Read in the sources of build 11434 and tried on its CPU build, unless a comment says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from enginehouse.core.errors import ConfigurationError
from enginehouse.engines import arguments
from enginehouse.engines.arguments import Argument
from enginehouse.engines.base import LaunchContext, Quirk
from enginehouse.engines.checks import require_allowed
from enginehouse.engines.llamacpp.history import REMOVED_FLAGS
from enginehouse.engines.llamacpp.quirks import AMX, has_amx
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.variables import inherited_variables
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.gguf_metadata import read_metadata

DEFAULT_SEQUENCES = 16
_DEFAULT_CONTEXT = 4096  # tokens, where the model's own is longer: each sequence's is set aside
# Every open connection holds a thread, and the health check needs one, too.
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
        *("--model", "-m", "--model-url", "-mu", "--docker-repo", "-dr"),
        *("--hf-repo", "-hf", "-hfr"),
        *("--hf-file", "-hff", "--models-dir", "--models-preset"),
    ),
    "use the option served_model_name": ("--alias", "-a"),
    "use the option max_model_len, which counts one sequence's tokens": ("--ctx-size", "-c"),
    "use the option max_num_seqs": ("--parallel", "-np"),
    "use the option max_num_batched_tokens": ("--batch-size", "-b"),
    "use the option enable_prefix_caching": ("--cache-prompt", "--no-cache-prompt"),
    "put a reverse proxy with TLS before the server": ("--ssl-key-file", "--ssl-cert-file"),
    "Enginehouse asks for text": ("--embedding", "--embeddings", "--rerank", "--reranking"),
    "Enginehouse asks for addresses without a prefix": ("--api-prefix",),
    "the server is ready for as long as it runs": ("--sleep-idle-seconds",),
    "an answer that outgrows the context is an error": ("--context-shift",),
}
_WHY_FORBIDDEN = {flag: why for why, flags in _FORBIDDEN.items() for flag in flags}


def check(options: ServerOptions, environment: EngineEnvironment) -> None:
    """Raise what ServedEngine.check does."""
    for field, fix in _WITHOUT.items():
        if getattr(options, field) not in (None, False):
            raise ConfigurationError(f"llamacpp has no option {field}", fix=fix)
    if options.dtype not in (None, "auto"):
        raise ConfigurationError(
            f"llamacpp cannot load the weights as {options.dtype}",
            why="a GGUF file has its own types",
            fix="take another quantisation of the model; extra_args --cache-type-k and "
            "--cache-type-v say how the cache is kept",
        )
    for name in options.env_vars:
        if name.startswith("LLAMA_"):
            fix = "set api_key" if name == "LLAMA_API_KEY" else "write the flag in extra_args"
            raise ConfigurationError(f"env_vars cannot set {name}", fix=fix)
    extra = arguments.read(arguments.split(options.extra_args))
    require_allowed(extra, _WHY_FORBIDDEN)
    label = f"llama-server {environment.version} ({environment.variant})"
    arguments.check(extra, flags=environment.flags, removed=REMOVED_FLAGS, engine=label)
    _require_adapters(extra)


def _require_adapters(extra: tuple[Argument, ...]) -> None:
    """Refuse missing files here: the server would notice them only once the model is loaded."""
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


def command(options: ServerOptions, context: LaunchContext) -> Command:
    """A server's command line and whole environment. Reads the model's header."""
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
    # LLAMA_ARG_... variables are flags that nobody wrote, and stay out.
    env = inherited_variables("(CUDA|GGML|OMP)_.*")
    # Threads that wait by spinning lose their turn to other programs: 1.6 tokens/s instead of 46
    # where three of those shared two cores.
    env.setdefault("OMP_WAIT_POLICY", "passive")
    if options.api_key:
        env["LLAMA_API_KEY"] = options.api_key
    return Command(argv=argv, env=env | dict(options.env_vars))


def quirks(options: ServerOptions, environment: EngineEnvironment) -> tuple[Quirk, ...]:
    """The crash on processors with AMX, on such a processor. See SupportsQuirks."""
    named = {argument.flag for argument in arguments.read(arguments.split(options.extra_args))}
    return (AMX,) if AMX.avoided in _defaults(options, environment, named) else ()


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
    """The flags that every server gets, where this version has them and the user left them open."""

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
