from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest

from enginehouse.core.errors import ConfigurationError, FlagError
from enginehouse.core.sampler import Capability, Load
from enginehouse.engines.base import LaunchContext, ServedEngine
from enginehouse.engines.llamacpp import command_line as llamacpp
from enginehouse.engines.llamacpp.engine import LlamaCppEngine
from enginehouse.engines.llamacpp.quirks import AMX
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import ENGINES
from enginehouse.processes.process import Command
from enginehouse.provisioning.description import Flag
from enginehouse.provisioning.environments import EngineEnvironment

ENGINE = LlamaCppEngine()
FLAGS = Path(__file__).with_name("llamacpp-11434-flags.json")
METRICS = """# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 30
llamacpp:prompt_tokens_cached_total 10
llamacpp:tokens_predicted_total 50
llamacpp:n_decode_total 44
llamacpp:requests_processing 3
llamacpp:requests_deferred 2
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> EngineEnvironment:
    """A description of build 11434, on a processor without AMX."""
    monkeypatch.setattr(llamacpp, "has_amx", lambda: False)
    return EngineEnvironment(
        engine="llamacpp",
        version="11434",
        variant="cpu",
        executable=Path("/engines/llama/bin/llama-server"),
        key="llamacpp-11434-cpu",
        flags=msgspec.json.decode(FLAGS.read_bytes(), type=dict[str, Flag]),
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GGUF file's header that says a context of 8192 tokens."""
    return write_gguf(tmp_path / "model.gguf", context=8192)


def write_gguf(file: Path, *, context: int) -> Path:
    """A GGUF file with two keys and no tensor."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = text("general.architecture") + struct.pack("<I", 8) + text("tiny")
    keys += text("tiny.context_length") + struct.pack("<II", 4, context)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + keys)
    return file


def command(server: EngineEnvironment, model: Path, **options: object) -> Command:
    """The command of a server with these options."""
    context = LaunchContext(
        environment=server,
        model_path=str(model),
        served_model_name="served",
        port=4000,
        internal_port=4001,
        start_limit=60,
        admin_key="adm1n",
    )
    return ENGINE.command(ServerOptions.model_validate(options), context=context)


def value_of(argv: tuple[str, ...], flag: str) -> str:
    """What follows a flag that is there once."""
    assert argv.count(flag) == 1
    return argv[argv.index(flag) + 1]


def test_registry_knows_it():
    """`llamacpp` is an engine that we start, by name."""
    found = ENGINES.load("llamacpp")()
    assert isinstance(found, ServedEngine)
    assert found.model_format == "gguf"


def test_what_it_does_not_do_is_not_declared():
    """No prompt log-probabilities, no token ids, no regular expressions, no tools of its own."""
    supports = ENGINE.capabilities(None).supports
    assert not supports & {
        Capability.PROMPT_LOGPROBS,
        Capability.TOKEN_IDS,
        Capability.REGEX,
        Capability.TOOLS,
        Capability.N,
    }
    assert {Capability.JSON_SCHEMA, Capability.CHOICE, Capability.GRAMMAR} <= supports


def test_the_context_is_a_sequences_times_their_number(server: EngineEnvironment, model: Path):
    """Its --ctx-size is the total over all slots."""
    argv = command(server, model, max_model_len=1000, max_num_seqs=4).argv
    assert value_of(argv, "--ctx-size") == "4000"
    assert value_of(argv, "--parallel") == "4"


def test_without_options_the_context_is_the_models_own_up_to_a_bound(
    server: EngineEnvironment, model: Path, tmp_path: Path
):
    """16 sequences, each with the context set aside: a long one would take all memory."""
    argv = command(server, model).argv
    assert value_of(argv, "--parallel") == "16"
    assert value_of(argv, "--ctx-size") == str(16 * 4096)
    short = write_gguf(tmp_path / "short.gguf", context=512)
    assert value_of(command(server, short).argv, "--ctx-size") == str(16 * 512)


def test_the_rest_of_the_command_line(server: EngineEnvironment, model: Path):
    """The program, the file, the name, the address, metrics; the user's own flags come last."""
    argv = command(
        server,
        model,
        max_num_batched_tokens=256,
        enable_prefix_caching=False,
        extra_args="--threads 3 --no-jinja",
    ).argv
    assert argv[:3] == ("/engines/llama/bin/llama-server", "--model", str(model))
    assert value_of(argv, "--alias") == "served"
    assert value_of(argv, "--host") == "127.0.0.1"
    assert value_of(argv, "--port") == "4000"
    assert value_of(argv, "--batch-size") == "256"
    assert {"--metrics", "--no-cache-prompt", "--offline", "--no-ui"} <= set(argv)
    assert "--jinja" not in argv
    assert argv[-3:] == ("--threads", "3", "--no-jinja")


def test_the_key_goes_through_the_environment(
    server: EngineEnvironment, model: Path, monkeypatch: pytest.MonkeyPatch
):
    """And flags that hide in LLAMA_ARG_… variables stay out of it."""
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "7")
    monkeypatch.setenv("SECRET", "x")
    made = command(server, model, api_key="hush", env_vars={"GGML_X": "1"})
    assert made.env["LLAMA_API_KEY"] == "hush"
    assert "hush" not in " ".join(made.argv)
    assert made.env["GGML_X"] == "1"
    assert not {"LLAMA_ARG_CTX_SIZE", "SECRET"} & made.env.keys()


def test_threads_do_not_spin_while_they_wait(
    server: EngineEnvironment, model: Path, monkeypatch: pytest.MonkeyPatch
):
    """Spinning costs nearly all speed where others compute, too; whoever wants it may have it."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert command(server, model).env["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert command(server, model).env["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensor_parallel_size": 2}, "--split-mode"),
        ({"pipeline_parallel_size": 2}, "every GPU"),
        ({"data_parallel_size": 2}, "several servers"),
        ({"gpu_memory_utilization": 0.5}, "--gpu-layers"),
        ({"enforce_eager": True}, "compiles nothing"),
        ({"trust_remote_code": True}, "no code"),
        ({"enable_lora": True}, "--lora FILE.gguf"),
        ({"max_lora_rank": 8}, "--lora FILE.gguf"),
        ({"dtype": "bfloat16"}, "quantisation"),
        ({"extra_args": "--api-key x"}, "api_key"),
        ({"extra_args": "-c 100"}, "max_model_len"),
        ({"extra_args": "-np 3"}, "max_num_seqs"),
        ({"extra_args": "-m other.gguf"}, "first argument"),
        ({"extra_args": "--context-shift"}, "outgrows"),
        ({"extra_args": "--lora none.gguf"}, "convert_lora_to_gguf"),
        ({"env_vars": {"LLAMA_API_KEY": "x"}}, "set api_key"),
        ({"env_vars": {"LLAMA_ARG_THREADS": "1"}}, "extra_args"),
    ],
)
def test_what_it_cannot_do_is_an_error_with_the_way_round(
    server: EngineEnvironment, options: dict[str, object], words: str
):
    """Nothing is ignored: each option that means nothing here says what to use."""
    with pytest.raises(ConfigurationError) as error:
        ENGINE.check(ServerOptions.model_validate(options), environment=server)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--thread 3", "--threads"),
        ("--threads", "needs a value"),
        ("--metrics yes", "takes no value"),
    ],
)
def test_flags_are_checked_against_this_builds_help(
    server: EngineEnvironment, flags: str, words: str
):
    """A misspelt flag never reaches the server."""
    with pytest.raises(FlagError) as error:
        ENGINE.check(ServerOptions(extra_args=flags), environment=server)
    assert words in str(error.value)


def test_options_that_leave_the_default_pass(server: EngineEnvironment, tmp_path: Path):
    """So do dtype auto, and an adapter that is there."""
    adapter = tmp_path / "adapter.gguf"
    adapter.touch()
    options = ServerOptions(dtype="auto", max_num_seqs=2, extra_args=["--lora", str(adapter)])
    ENGINE.check(options, environment=server)


def test_amx_repacking_is_avoided_where_it_crashes(
    server: EngineEnvironment, model: Path, monkeypatch: pytest.MonkeyPatch
):
    """A declared fact: on such a processor it dies at warm-up; elsewhere nothing is given up."""
    assert ENGINE.quirks(ServerOptions(), environment=server) == ()
    monkeypatch.setattr(llamacpp, "has_amx", lambda: True)
    assert ENGINE.quirks(ServerOptions(), environment=server) == (AMX,)
    assert "--no-repack" in command(server, model).argv
    for options in (ServerOptions(avoid_quirks=False), ServerOptions(extra_args="--repack")):
        assert ENGINE.quirks(options, environment=server) == ()


def test_amx_is_seen_in_the_processors_flags(tmp_path: Path):
    """And nowhere else; a machine that tells nothing has none."""
    info = tmp_path / "cpuinfo"
    info.write_text("model name : amx_tile\nflags : fpu avx2\n")
    assert not llamacpp.has_amx(info)
    info.write_text("processor : 0\nflags\t\t: fpu amx_bf16 amx_tile amx_int8\n")
    assert llamacpp.has_amx(info)
    assert not llamacpp.has_amx(tmp_path / "none")


def test_the_queue_is_read_from_its_metrics():
    """Steps grow while a long answer is made, whose tokens are counted when it ends."""
    assert ENGINE.load_signal.parse(METRICS) == Load(
        running=3,
        waiting=2,
        prompt_tokens=30,
        generation_tokens=50,
        prefix_cache_queries=40,
        prefix_cache_hits=10,
        steps=44,
    )
    assert ENGINE.load_signal.parse("vllm:num_requests_running 1\n") is None
