from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

import msgspec
import psutil
import pytest

from enginehouse.core.errors import ConfigurationError, FlagError, UnsupportedError
from enginehouse.core.sampler import Capability, Load
from enginehouse.engines import arguments
from enginehouse.engines.base import LaunchContext
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import ENGINES
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.engines.vllm.history import IGNORED_FIELDS, REMOVED_FLAGS
from enginehouse.engines.vllm.quirks import NAMED_TOKENS

ENGINE = VllmEngine()


@pytest.fixture
def few_cores(monkeypatch):
    """A machine of two cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.fixture
def many_cores(monkeypatch):
    """A machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


def command(environment, **options: object):
    """The command of a server with these options."""
    context = LaunchContext(
        environment=environment,
        model_path="/models/m",
        served_model_name="served",
        port=4000,
        internal_port=4001,
        start_limit=1800.5,
        admin_key="adm1n",
    )
    return ENGINE.command(ServerOptions(**options), context=context)


def check(environment, **options: object):
    """Check these options against the environment's flags."""
    ENGINE.check(ServerOptions(**options), environment=environment)


def part(environment, *, over: str | None = None, **options: object):
    """The command of machine 1's part of a server over two machines."""
    flags = ENGINE.span_flags(2, port=20000, over=over)
    context = LaunchContext(
        environment=environment,
        model_path="/models/m",
        served_model_name="served",
        port=4000,
        internal_port=4001,
        start_limit=1800.5,
        admin_key="",
    )
    chosen = ServerOptions(extra_args=flags, **options)
    return ENGINE.worker(chosen, context=context, head="node0", node=1)


def test_a_server_over_two_machines(cuda):
    """Both parts know of each other; only the head serves over HTTP."""
    flags = ENGINE.span_flags(2, port=20000)
    check(cuda, extra_args=flags, data_parallel_size=2)
    head = command(cuda, extra_args=flags, data_parallel_size=2).argv
    worker = part(cuda, data_parallel_size=2).argv
    for argv, node in ((head, "0"), (worker, "1")):
        assert argv[argv.index("--nnodes") + 1] == "2"
        assert argv[argv.index("--node-rank") + 1] == node
        assert argv[argv.index("--master-port") + 1] == "20000"
    ipaddress.ip_address(head[head.index("--master-addr") + 1])
    assert worker[worker.index("--master-addr") + 1] == "node0"
    assert worker[4:6] == ("/models/m", "--headless")
    own = {"--host", "--port", "--served-model-name", "--middleware", "--api-server-count"}
    assert own <= set(head)
    assert not own & set(worker)


@pytest.mark.parametrize(
    ("extra", "ports"),
    [
        (ENGINE.span_flags(2, port=20000), (20000, 20001)),
        (ENGINE.span_flags(2, port=20000, over="ray"), (20000, 20001)),
        ("--nnodes=2 --master-port=65535", (65535,)),
        ("--master-port 20000", ()),
        ("--nnodes 2", ()),
        ("", ()),
    ],
)
def test_the_ports_where_parts_meet(extra, ports):
    """Are known before anything is started, and are the head's."""
    assert ENGINE.meeting_ports(ServerOptions(extra_args=extra)) == ports


def test_a_server_over_two_machines_that_ray_joins(cuda, environment):
    """Ray is started on both, and vLLM, on the first, is not told how many there are."""
    flags = ENGINE.span_flags(2, port=20000, over="ray")
    check(cuda, extra_args=flags, pipeline_parallel_size=2)
    head = command(cuda, extra_args=flags, pipeline_parallel_size=2).argv
    own, server = head[: head.index("--")], head[head.index("--") + 1 :]
    assert own[1].endswith("vllm_over_ray.py")
    assert own[2] == "head"
    assert own[own.index("--nodes") + 1] == "2"
    assert own[own.index("--port") + 1] == "20000"
    assert server[server.index("--distributed-executor-backend") + 1] == "ray"
    assert not {"--nnodes", "--master-port", "--node-rank"} & set(server)
    worker = part(cuda, over="ray")
    assert worker.argv[2] == "worker"
    assert worker.argv[worker.argv.index("--head") + 1] == "node0"
    assert part(environment, over="ray").argv[2] == "worker"  # it needs no `vllm serve`


def test_a_server_that_ray_joins_needs_a_port(cuda):
    """All of its machines must know it."""
    flags = "--nnodes 2 --distributed-executor-backend ray"
    with pytest.raises(ConfigurationError, match="master-port"):
        command(cuda, extra_args=flags)


def test_a_build_without_vllm_serve_has_no_parts(environment):
    """It would serve by itself instead."""
    with pytest.raises(UnsupportedError):
        part(environment)


def test_registry_knows_it():
    """`vllm` is an engine by name."""
    assert "vllm" in ENGINES.names()
    assert isinstance(ENGINES.load("vllm")(), VllmEngine)


def test_cpu_build_is_not_started_through_vllm_serve(environment):
    """`vllm serve` cannot find the CPU build, whose distribution has another name."""
    argv = command(environment).argv
    assert argv[:3] == ("/engines/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert argv[argv.index("--model") + 1] == "/models/m"


def test_cuda_build_is_started_through_vllm_serve(cuda):
    """The CUDA build takes the model as `vllm serve`'s argument."""
    argv = command(cuda).argv
    assert argv[1:5] == ("-m", "vllm.entrypoints.cli.main", "serve", "/models/m")
    assert "--enforce-eager" not in argv


def test_a_release_without_vllm_serve_is_started_as_a_module(cuda):
    """What the environment was seen to have counts, and not its build."""
    old = msgspec.structs.replace(cuda, entry_module="vllm.entrypoints.openai.api_server")
    assert command(old).argv[1:5] == ("-m", old.entry_module, "--model", "/models/m")


def test_an_old_release_is_not_given_what_it_lacks(environment):
    """Our own defaults are flags, too: each is left out where this version's list has it not."""
    flags = {
        name: flag
        for name, flag in environment.flags.items()
        if not name.startswith("--no-") and name != "--generation-config"
    }
    old = msgspec.structs.replace(environment, flags=flags)
    argv = command(old).argv
    assert "--no-enable-chunked-prefill" in command(environment).argv
    assert "--no-enable-chunked-prefill" not in argv
    assert "--generation-config" not in argv
    assert VllmEngine().quirks(ServerOptions(), environment=old) == (NAMED_TOKENS,)


def test_address_and_name_are_always_said(environment):
    """Host, port and served name never depend on the engine's defaults."""
    argv = command(environment).argv
    for flag, value in {
        "--host": "127.0.0.1",
        "--port": "4000",
        "--served-model-name": "served",
        "--generation-config": "vllm",
    }.items():
        assert argv[argv.index(flag) + 1] == value


def test_every_typed_option_has_a_flag_that_exists(environment):
    """Each option reaches the command line as a flag that the real vLLM has."""
    options = {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "data_parallel_size": 2,
        "dtype": "bfloat16",
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.95,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 8192,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": False,
        "enforce_eager": False,
        "trust_remote_code": True,
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 64,
    }
    check(environment, **options)
    argv = command(environment, **options).argv
    for word in (
        "--tensor-parallel-size",
        "0.95",
        "--no-enforce-eager",
        "--no-enable-chunked-prefill",
    ):
        assert argv.count(word) == 1
    known = {a.flag for a in arguments.read(argv[5:])} <= set(environment.flags)
    assert known


def test_a_place_for_adapters_stays_empty_on_a_cpu(environment):
    """There, requests without an adapter are taken for the last place's."""

    def places(at, **options: object) -> list[str]:
        argv = command(at, enable_lora=True, **options).argv
        return [argv[place + 1] for place, word in enumerate(argv) if word == "--max-loras"]

    on_cpu = msgspec.structs.replace(environment, variant="cpu")
    on_gpu = msgspec.structs.replace(environment, variant="cuda")
    assert places(on_cpu, max_loras=3) == ["4"]
    assert places(on_cpu) == ["2"]
    assert places(on_cpu, avoid_quirks=False) == []
    assert places(on_cpu, extra_args="--max-loras 5") == ["5"]
    assert places(on_gpu, max_loras=3) == ["3"]
    assert places(on_gpu) == []
    assert "--max-loras" not in command(on_cpu).argv

    def drops(at, **options: object) -> bool:
        return "enginehouse_unloading.Unloading" in command(at, enable_lora=True, **options).argv

    assert drops(on_cpu)
    assert command(on_cpu, enable_lora=True).argv[-1] == "enginehouse_guard.Guard"
    assert not drops(on_cpu, avoid_quirks=False)
    assert not drops(on_gpu)


def test_own_defaults_exist_in_the_real_engine(environment, few_cores):
    """What we add by ourselves is checked against the real list, too."""
    words = command(environment).argv[3:]
    arguments.check(arguments.read(words), flags=environment.flags, removed={}, engine="vllm")


def test_own_defaults_give_way(environment):
    """What the user says in extra_args is not said a second time."""
    argv = command(environment, extra_args="--generation-config auto -cc.mode 3").argv
    assert argv.count("--generation-config") == 1
    assert "--enforce-eager" not in argv


def test_own_defaults_are_left_out_where_unknown(environment):
    """An older vLLM without --structured-outputs-config is not given it."""
    flags = {k: v for k, v in environment.flags.items() if k != "--structured-outputs-config"}
    argv = command(msgspec.structs.replace(environment, flags=flags)).argv
    assert "--structured-outputs-config" not in argv


def test_cpu_never_cuts_a_prefill(environment):
    """A cut prefill of a seeded request kills the CPU engine, unless the user wants to risk it."""
    assert "--no-enable-chunked-prefill" in command(environment).argv
    for options in ({"enable_chunked_prefill": True}, {"max_num_batched_tokens": 2048}):
        assert "--no-enable-chunked-prefill" not in command(environment, **options).argv


def test_data_parallel_has_one_api_server(cuda):
    """Several API servers cannot load an adapter at run time."""
    argv = command(cuda, data_parallel_size=2).argv
    assert argv[argv.index("--api-server-count") + 1] == "1"
    assert "--api-server-count" in command(cuda, extra_args="-dp 2").argv
    assert "--api-server-count" not in command(cuda).argv


def test_environment_is_an_allow_list(environment, monkeypatch):
    """Only what the issue lists is inherited; secrets of ours are not."""
    listed = (
        "HF_TOKEN",
        "CUDA_VISIBLE_DEVICES",
        "NCCL_DEBUG",
        "TRANSFORMERS_CACHE",
        "https_proxy",
        "NO_PROXY",
        "VLLM_LOGGING_LEVEL",
        "LD_LIBRARY_PATH",
    )
    for name in (*listed, "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_PRELOAD", "XHF_X", "PATHS"):
        monkeypatch.setenv(name, "value")
    env = command(environment).env
    assert {name: env.get(name) for name in listed} == dict.fromkeys(listed, "value")
    assert not {"AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "XHF_X", "PATHS"} & set(env)
    assert "value" not in env["PYTHONPATH"]


def test_the_engines_own_programs_come_first(environment, monkeypatch):
    """The environment's bin folder leads PATH, also when env_vars sets PATH."""
    monkeypatch.setenv("PATH", "/usr/bin")
    assert command(environment).env["PATH"] == "/engines/vllm/bin:/usr/bin"
    assert command(environment, env_vars={"PATH": "/x"}).env["PATH"] == "/engines/vllm/bin:/x"


def test_api_key_is_only_in_the_environment(environment):
    """A key on the command line could be read by every user of the machine."""
    made = command(environment, api_key="s3cret")
    assert made.env["GUARD_API_KEY"] == "s3cret"
    assert "s3cret" not in " ".join(made.argv)
    assert "s3cret" not in repr(ServerOptions(api_key="s3cret"))


def test_inherited_key_and_ports_are_not_passed_on(environment, monkeypatch):
    """A VLLM_API_KEY or VLLM_PORT that lies about would lock us out, or collide."""
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    monkeypatch.setenv("VLLM_PORT", "1")
    env = command(environment).env
    assert "VLLM_API_KEY" not in env
    assert env["VLLM_PORT"] == "4001"


DEVELOPMENT = {"VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"}


@pytest.mark.parametrize(
    ("options", "on"),
    [
        ({}, set()),
        ({"host": "0.0.0.0", "api_key": "k"}, set()),
        ({"enable_lora": True}, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING"}),
        ({"extra_args": "--enable_lora"}, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING"}),
        ({"enable_weight_swap": True}, {"VLLM_SERVER_DEV_MODE"}),
        ({"enable_weight_swap": True, "enable_lora": True}, DEVELOPMENT),
    ],
)
def test_endpoints_that_change_a_server_are_on_only_where_asked_for(
    environment, monkeypatch, options, on
):
    """Wherever it listens, and even if our own environment has them on."""
    for name in DEVELOPMENT:
        monkeypatch.setenv(name, "1")
    assert DEVELOPMENT & set(command(environment, **options).env) == on


def test_every_server_is_guarded(environment):
    """By the middleware, which is asked before the user's own; keys are in the environment only."""
    extra = "--middleware mine.Middleware"
    made = command(
        environment, api_key="s3cret", extra_args=extra, env_vars={"PYTHONPATH": "/mine"}
    )
    given = [made.argv[at + 1] for at, word in enumerate(made.argv) if word == "--middleware"]
    assert given == ["mine.Middleware", "enginehouse_guard.Guard"]
    folder, mine = made.env["PYTHONPATH"].split(os.pathsep)
    assert (Path(folder) / "enginehouse_guard.py").is_file()
    assert mine == "/mine"
    assert made.env["GUARD_API_KEY"] == "s3cret"
    assert made.env["GUARD_ADMIN_KEY"] == "adm1n"
    assert not {"s3cret", "adm1n"} & set(" ".join(made.argv).split())
    assert "GUARD_API_KEY" not in command(environment).env


def test_what_would_go_round_the_guard_is_refused(environment, monkeypatch):
    """VLLM's Rust front end loads no middleware; neither does a version without the flag."""
    with pytest.raises(ConfigurationError):
        check(environment, env_vars={"VLLM_USE_RUST_FRONTEND": "1"})
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    assert "VLLM_USE_RUST_FRONTEND" not in command(environment).env
    flags = {name: flag for name, flag in environment.flags.items() if name != "--middleware"}
    with pytest.raises(ConfigurationError):
        check(msgspec.structs.replace(environment, flags=flags))


@pytest.mark.parametrize("flag", ["--enable-sleep-mode", "--weight-transfer-config.backend ipc"])
def test_flags_that_need_the_endpoints_say_so(environment, flag):
    """They would do nothing, and somebody would look for the reason at the first swap."""
    with pytest.raises(ConfigurationError) as refused:
        check(environment, extra_args=flag)
    assert "--enable-weight-swap" in (refused.value.fix or "")
    check(environment, extra_args=flag, enable_weight_swap=True)


def test_cpu_settings_on_few_cores(environment, few_cores):
    """Two cores: none reserved, and no worker process besides the engine."""
    env = command(environment).env
    assert env["VLLM_TARGET_DEVICE"] == "cpu"
    assert env["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    assert (env["VLLM_ENABLE_V1_MULTIPROCESSING"], env["OMP_NUM_THREADS"]) == ("0", "2")
    parallel = command(environment, tensor_parallel_size=2).env
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in parallel
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in command(environment, extra_args="-tp 2").env


def test_cpu_settings_on_many_cores(environment, many_cores):
    """Many cores: vLLM's own thread binding is left alone."""
    env = command(environment).env
    assert not {"VLLM_CPU_NUM_OF_RESERVED_CPU", "OMP_NUM_THREADS"} & set(env)


@pytest.mark.parametrize(("total", "space"), [(4, "1"), (16, "2"), (23, "2"), (512, "4")])
def test_kv_cache_is_a_share_of_memory(environment, monkeypatch, total, space):
    """An eighth of the memory, in whole GiB, from 1 to 4, unless the user decides."""
    memory = psutil.virtual_memory()._replace(total=total << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert command(environment).env["VLLM_CPU_KVCACHE_SPACE"] == space
    chosen = command(environment, extra_args="--kv-cache-memory-bytes 1G").env
    assert "VLLM_CPU_KVCACHE_SPACE" not in chosen
    given = command(environment, env_vars={"VLLM_CPU_KVCACHE_SPACE": "7"}).env
    assert given["VLLM_CPU_KVCACHE_SPACE"] == "7"


@pytest.mark.parametrize(
    ("options", "message", "fix"),
    [
        ({"extra_args": "--port 1"}, "cannot have --port", "option port"),
        (
            {"extra_args": "--served_model_name=x"},
            "--served-model-name",
            "option served_model_name",
        ),
        ({"extra_args": "--api-key x"}, "--api-key", "option api_key"),
        ({"extra_args": "--hf-token x"}, "--hf-token", "HF_TOKEN"),
        ({"extra_args": "-tp 2", "tensor_parallel_size": 1}, "tensor_parallel_size", "one of"),
        ({"extra_args": "--no-enforce-eager", "enforce_eager": True}, "enforce_eager", "one of"),
        ({"env_vars": {"VLLM_API_KEY": "x"}}, "VLLM_API_KEY", "api_key"),
        ({"env_vars": {"VLLM_PORT": "1"}}, "VLLM_PORT", "leased"),
        ({"max_loras": 2}, "without enable_lora", "set enable_lora"),
        ({"enable_lora": True, "max_lora_rank": 24}, "max_lora_rank 24", "use 32"),
        ({"enable_lora": True, "max_lora_rank": 600}, "max_lora_rank 600", "at most 512"),
        ({"extra_args": ["--swap-space", "4"]}, "no longer has --swap-space", "computed again"),
    ],
)
def test_contradictions_are_refused(environment, options, message, fix):
    """What would be overridden, ignored or refused later is refused now, with the way out."""
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        check(environment, **options)
    assert fix in caught.value.fix


def test_typed_option_may_come_through_extra_args(environment):
    """A configuration that has everything in extra_args works."""
    check(environment, extra_args="--max-model-len 4096 --enable-prefix-caching -tp 1")


def test_missing_flag_of_a_typed_option_is_a_flag_error(environment):
    """An engine without the option's flag is named, with its version."""
    old = msgspec.structs.replace(environment, flags={"--host": environment.flags["--host"]})
    with pytest.raises(FlagError, match=r"vllm 0\.32\.0 .*--max-num-seqs"):
        check(old, max_num_seqs=4)


def test_removed_flags_are_gone_and_their_advice_exists(flags):
    """No flag is called removed that the real list has; every flag recommended is in it."""
    assert not set(REMOVED_FLAGS) & set(flags)
    advised = {f for text in REMOVED_FLAGS.values() for f in re.findall(r"--[a-z][a-z-]+", text)}
    assert advised - {"--variant"} <= set(flags)


def test_capabilities_cover_everything_and_refuse_what_is_ignored():
    """It does all there is; the removed guided fields point to structured_outputs."""
    capabilities = ENGINE.capabilities(None)
    assert capabilities.supports == set(Capability)
    assert capabilities.ignored["guided_json"] == "structured_outputs"
    assert "structured_outputs" not in IGNORED_FIELDS
    assert "logit_bias" not in IGNORED_FIELDS


METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m {x}"} 3.0
vllm:num_requests_running{engine="1",model_name="m {x}"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.25e+06
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.79e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 42.0
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.79e+09
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 48.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 7.0
"""


def test_load_is_summed_over_engines():
    """Counts add up over data-parallel engines; the fullest cache counts."""
    assert ENGINE.load_signal.parse(METRICS) == Load(
        running=7,
        waiting=6,
        kv_cache_usage=0.5,
        prompt_tokens=1_250_000,
        generation_tokens=42,
        preemptions=2,
        prefix_cache_queries=100,
        prefix_cache_hits=48,
    )


@pytest.mark.parametrize("body", ["", "<html>", "vllm:num_requests_running 1.0\n"])
def test_a_page_without_queue_is_no_load(body):
    """Not a vLLM, or not its metrics: the client must not take that for an empty queue."""
    assert ENGINE.load_signal.parse(body) is None
