"""SGLang's command line, environment, load signal and small endpoints, as its sources have them.

sglang-0.5.23-flags.json is what payloads/describe_sglang.py printed under the wheel's own code
(its ServerArgs), on a Python with a CPU build of torch.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enginehouse.core.errors import ConfigurationError, FlagError
from enginehouse.core.sampler import Capability, Load
from enginehouse.engines import arguments
from enginehouse.engines.base import LaunchContext, ServedEngine
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import ENGINES
from enginehouse.engines.sglang.engine import SglangEngine
from enginehouse.engines.sglang.history import IGNORED_FIELDS, REMOVED_FLAGS
from enginehouse.processes.process import Command
from enginehouse.provisioning.description import Flag
from enginehouse.provisioning.environments import EngineEnvironment

ENGINE = SglangEngine()
FLAGS = msgspec.json.decode(
    Path(__file__).with_name("sglang-0.5.23-flags.json").read_bytes(), type=dict[str, Flag]
)
ENVIRONMENT = EngineEnvironment(
    engine="sglang",
    version="0.5.23",
    variant="cuda",
    executable=Path("/engines/sglang/bin/python"),
    key="sglang-0.5.23-cuda",
    flags=FLAGS,
)
EVERYTHING: dict[str, Any] = {
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "dtype": "bfloat16",
    "max_model_len": 4096,
    "gpu_memory_utilization": 0.8,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 8192,
    "enable_prefix_caching": False,
    "enforce_eager": True,
    "trust_remote_code": True,
    "enable_lora": True,
    "max_loras": 2,
    "max_lora_rank": 64,
}


def command(**options: Any) -> Command:
    """The command of a server with these options."""
    context = LaunchContext(
        environment=ENVIRONMENT,
        model_path="/models/m",
        served_model_name="served",
        port=4000,
        internal_port=4001,
        start_limit=1800.5,
        admin_key="adm1n",
    )
    return ENGINE.command(ServerOptions(**options), context=context)


def check(**options: Any) -> None:
    """Check these options against the flags of 0.5.23."""
    ENGINE.check(ServerOptions(**options), environment=ENVIRONMENT)


def value_of(flag: str, argv: tuple[str, ...]) -> str:
    """What comes after a flag that is there once."""
    assert argv.count(flag) == 1
    return argv[argv.index(flag) + 1]


def test_registry_knows_it_and_that_it_was_not_run():
    """`sglang` is an engine that we start, and says that nobody has run it yet."""
    engine = ENGINES.load("sglang")()
    assert isinstance(engine, ServedEngine)
    assert engine.tried is None


def test_it_is_started_by_our_launcher_with_address_and_name():
    """Its own Python runs the launcher; nothing of this depends on SGLang's defaults."""
    argv = command().argv
    assert argv[0] == "/engines/sglang/bin/python"
    assert Path(argv[1]).name == "serve_sglang.py"
    assert Path(argv[1]).exists()
    expected = {
        "--model-path": "/models/m",
        "--served-model-name": "served",
        "--host": "127.0.0.1",
        "--port": "4000",
        "--nccl-port": "4001",
        "--sampling-defaults": "openai",
        "--tool-call-parser": "auto",
    }
    assert {flag: value_of(flag, argv) for flag in expected} == expected
    assert {"--enable-metrics", "--constrained-json-disable-any-whitespace"} <= set(argv)


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"enable_lora": True}])
def test_every_flag_that_we_write_exists(options: dict[str, Any]):
    """Typed options and our own defaults are flags of the real ServerArgs, with fitting values."""
    check(**options)
    words = command(**options).argv[2:]
    arguments.check(arguments.read(words), flags=FLAGS, removed={}, engine="sglang")


def test_typed_options_have_sglangs_names():
    """What vLLM calls otherwise is translated; LoRA slots have one for the base model besides."""
    argv = command(**EVERYTHING).argv
    expected = {
        "--context-length": "4096",
        "--mem-fraction-static": "0.8",
        "--max-running-requests": "64",
        "--chunked-prefill-size": "8192",
        "--cuda-graph-backend-decode": "disabled",
        "--cuda-graph-backend-prefill": "disabled",
        "--max-loras-per-batch": "3",
        "--max-lora-rank": "64",
        "--lora-target-modules": "all",
    }
    assert {flag: value_of(flag, argv) for flag in expected} == expected
    assert {"--disable-radix-cache", "--trust-remote-code", "--enable-lora"} <= set(argv)


def test_what_is_sglangs_own_way_needs_no_flag():
    """Prefix caching, chunked prefill and CUDA graphs are on by themselves."""
    on = {"enable_prefix_caching": True, "enable_chunked_prefill": True, "enforce_eager": False}
    assert command(**on).argv == command().argv
    assert value_of("--chunked-prefill-size", command(enable_chunked_prefill=False).argv) == "-1"


def test_own_defaults_give_way():
    """What the user says in extra_args is not said a second time."""
    extra = "--tool-call-parser hermes --sampling-defaults=model --lora-paths a=/a --dp-size 2"
    argv = command(extra_args=extra, enable_lora=True).argv
    assert value_of("--tool-call-parser", argv) == "hermes"
    for flag in ("--sampling-defaults", "--max-lora-rank", "--lora-target-modules", "--nccl-port"):
        assert flag not in argv


def test_the_key_is_in_the_environment_only(monkeypatch: pytest.MonkeyPatch):
    """SGLang takes a key as a flag only; ours reaches the launcher through its environment."""
    monkeypatch.setenv("SGLANG_SERVER_ADMIN_KEY", "theirs")
    made = command(api_key="s3cret")
    assert not {"s3cret", "adm1n"} & set(made.argv)
    assert made.env["SGLANG_SERVER_API_KEY"] == "s3cret"
    assert made.env["SGLANG_SERVER_ADMIN_KEY"] == "adm1n"
    open_to_all = command().env
    assert "SGLANG_SERVER_API_KEY" not in open_to_all
    assert open_to_all["SGLANG_SERVER_ADMIN_KEY"] == "adm1n"


def test_the_environment_is_chosen(monkeypatch: pytest.MonkeyPatch):
    """Only what SGLang needs is handed on; its own limits are no shorter than ours."""
    monkeypatch.setenv("SGLANG_LOG_MS", "1")
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    env = command(env_vars={"SGLANG_TIMEOUT_KEEP_ALIVE": "7"}).env
    assert env["SGLANG_LOG_MS"] == "1"
    assert "SECRET_OF_MINE" not in env
    assert env["SGLANG_TIMEOUT_KEEP_ALIVE"] == "7"
    assert env["SGLANG_WARMUP_TIMEOUT"] == "1801"
    assert env["SGLANG_RETURN_ORIGINAL_LOGPROB"] == "1"
    assert env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "0"
    assert env["PATH"].startswith(f"/engines/sglang/bin{os.pathsep}")
    with pytest.raises(ConfigurationError, match="api_key"):
        check(env_vars={"SGLANG_SERVER_API_KEY": "x"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extra_args": "--api-key x"}, "option api_key"),
        ({"extra_args": "--config x.yaml"}, "extra_args"),
        ({"extra_args": "--tp-size 2", "tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"extra_args": "--disable-radix-cache", "enable_prefix_caching": True}, "prefix"),
        ({"extra_args": "--chunked-prefill-size 9", "enable_chunked_prefill": False}, "chunked"),
        ({"max_num_batched_tokens": 9, "enable_chunked_prefill": False}, "contradict"),
        ({"max_lora_rank": 8}, "enable_lora"),
        ({"enable_lora": True, "data_parallel_size": 2}, "--lora-paths"),
    ],
)
def test_contradictions_are_found_before_anything_starts(options: dict[str, Any], said: str):
    """Options that SGLang would take one of, or fail with, are errors that say which to leave."""
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        check(**options)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("--context_length 5", "--context-length"),
        ("--cuda-graph-max-bs 8", "--cuda-graph-max-bs-decode"),
        ("--grammar-backend guidance", "xgrammar"),
        ("--max-model-len 5", "no flag --max-model-len"),
        ("--watchdog-timeout", "needs a value"),
    ],
)
def test_flags_are_checked_against_the_real_ones(extra: str, said: str):
    """Underscores, flags of the past or of vLLM, and wrong choices never reach SGLang."""
    with pytest.raises(FlagError, match=re.escape(said)):
        check(extra_args=extra)


def test_lora_with_replicas_is_fine_where_adapters_are_named():
    """Only loading while it runs is what data-parallel replicas cannot do."""
    check(enable_lora=True, data_parallel_size=2, extra_args="--lora-paths a=/adapters/a")


def test_removed_flags_are_gone_and_their_advice_exists():
    """No flag of the past is one of today, and each advice names flags of today."""
    assert not REMOVED_FLAGS.keys() & FLAGS.keys()
    for advice in REMOVED_FLAGS.values():
        assert set(re.findall(r"--[a-z0-9-]+", advice)) <= FLAGS.keys(), advice


def test_capabilities_leave_out_what_the_endpoints_do_not_do():
    """Seeds and prompt log-probabilities are refused rather than silently ignored."""
    capabilities = ENGINE.capabilities(None)
    assert set(Capability) - capabilities.supports == {
        Capability.SEED,
        Capability.PROMPT_LOGPROBS,
    }
    assert capabilities.ignored == IGNORED_FIELDS
    assert {"structured_outputs", "guided_json", "max_new_tokens"} <= IGNORED_FIELDS.keys()


METRICS = """
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 3.0
sglang:num_running_reqs{engine_type="unified",model_name="m",priority="5",tp_rank="0"} 2.0
sglang:num_running_reqs{dp_rank="1",model_name="m",priority="",tp_rank="0"} 4.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 5.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.25
sglang:full_token_usage{model_name="m",tp_rank="0"} 0.9
sglang:num_retracted_requests_total{model_name="m",tp_rank="0"} 1.0
sglang:prompt_tokens_total{is_streaming="false",model_name="m"} 1.2e+03
sglang:prompt_tokens_total{is_streaming="true",model_name="m"} 34.0
sglang:generation_tokens_total{is_streaming="false",model_name="m"} 56.0
sglang:cached_tokens_total{cache_source="device",model_name="m"} 7.0
"""


def test_the_queue_is_read_from_the_metrics():
    """Replicas are summed, the parts by priority are not counted twice."""
    assert ENGINE.load_signal.parse(METRICS) == Load(
        running=7,
        waiting=5,
        kv_cache_usage=0.25,
        prompt_tokens=1234,
        generation_tokens=56,
        preemptions=1,
        prefix_cache_queries=1234,
        prefix_cache_hits=7,
    )
    assert ENGINE.load_signal.parse("Not Found") is None


def test_adapters_are_asked_for_by_the_name_that_sglang_understands():
    """An adapter's bare name would be answered by the base model: it is never offered."""
    wire = ENGINE.wire
    body = b"""{"object": "list", "data": [
        {"id": "base", "root": "base", "parent": null, "max_model_len": 8192},
        {"id": "math", "root": "/adapters/math", "parent": "base", "max_model_len": null}]}"""
    assert wire.decode_models(body) == ("base", "base:math")
    assert wire.adapters is not None
    assert wire.adapters.model("base", "math") == "base:math"
    load = wire.adapters.load("math", "/adapters/math")
    assert (load.method, load.path) == ("POST", "/load_lora_adapter")
    assert msgspec.json.decode(load.body or b"") == {
        "lora_name": "math",
        "lora_path": "/adapters/math",
    }
    unload = wire.adapters.unload("math")
    assert (unload.path, msgspec.json.decode(unload.body or b"")) == (
        "/unload_lora_adapter",
        {"lora_name": "math"},
    )


def test_an_adapter_that_is_not_loaded_is_an_unknown_model():
    """SGLang's words for it become the error that says so."""
    body = msgspec.json.encode(
        {
            "object": "error",
            "message": "Got LoRA adapter that has never been loaded: math\nAll loaded adapters: …",
            "type": "BadRequest",
            "code": 400,
        }
    )
    error = ENGINE.wire.error_reply(400, body, retry_after=None)
    assert type(error).__name__ == "UnknownModelError"


def test_a_full_context_is_told_as_such():
    """The three ways in which SGLang says it, the last of them for chats only."""
    for message in (
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
        "max_completion_tokens is too large: 9000.This model supports at most 4096 tokens.",
    ):
        body = msgspec.json.encode({"object": "error", "message": message, "code": 400})
        error = ENGINE.wire.error_reply(400, body, retry_after=None)
        assert type(error).__name__ == "ContextOverflowError", message
