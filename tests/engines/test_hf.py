from __future__ import annotations

import re
from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError, FlagError
from enginehouse.core.sampler import Capability, Load
from enginehouse.engines.base import LaunchContext, ServedEngine
from enginehouse.engines.hf import command_line as hf
from enginehouse.engines.hf.engine import HfEngine
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import ENGINES
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.plans import plan_environment
from enginehouse.provisioning.programs import PAYLOADS

ENGINE = HfEngine()
METRICS = """# TYPE hf:num_requests_running gauge
hf:num_requests_running{model_name="a} b"} 3
# TYPE hf:num_requests_waiting gauge
hf:num_requests_waiting{model_name="a} b"} 2
# TYPE hf:prompt_tokens_total counter
hf:prompt_tokens_total{model_name="a} b"} 30
# TYPE hf:generation_tokens_total counter
hf:generation_tokens_total{model_name="a} b"} 50
"""


@pytest.fixture
def environment() -> EngineEnvironment:
    """A description of our CPU environment."""
    return EngineEnvironment(
        engine="hf",
        version="5.19.0",
        variant="cpu",
        executable=Path("/engines/hf/bin/python"),
        key="hf-5.19.0-cpu",
        flags={},
    )


def command(environment: EngineEnvironment, **options: object) -> Command:
    """The command of a server with these options."""
    context = LaunchContext(
        environment=environment,
        model_path="/models/tiny",
        served_model_name="served",
        port=4000,
        internal_port=4001,
        start_limit=60,
        admin_key="adm1n",
    )
    return ENGINE.command(ServerOptions.model_validate(options), context=context)


def check(environment: EngineEnvironment, **options: object) -> None:
    """Check these options."""
    ENGINE.check(ServerOptions.model_validate(options), environment=environment)


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch):
    """The server's own parser of its command line."""
    monkeypatch.syspath_prepend(str(PAYLOADS))
    from hf_server.options import make_parser  # type: ignore[import-not-found]

    return make_parser()


def test_registry_knows_it():
    """`hf` is an engine that we start, and that loads ordinary checkpoints."""
    found = ENGINES.load("hf")()
    assert isinstance(found, ServedEngine)
    assert found.model_format == "checkpoint"


def test_native_tools_are_all_that_it_lacks():
    """The rest passes the conformance suite (tests/end_to_end/test_hf.py)."""
    assert frozenset(Capability) - ENGINE.capabilities(None).supports == {Capability.TOOLS}


def test_every_option_reaches_the_server(environment: EngineEnvironment, parser):
    """The server's parser reads from the command line what the options said."""
    options = {
        "host": "0.0.0.0",
        "api_key": "s3cret",
        "dtype": "float32",
        "max_model_len": 1000,
        "gpu_memory_utilization": 0.5,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 600,
        "trust_remote_code": True,
        "enable_lora": True,
        "max_loras": 3,
        "max_lora_rank": 16,
        "extra_args": "--device cpu --kv-cache-memory-bytes 1000000",
    }
    made = command(environment, **options)
    check(environment, **options)
    assert made.argv[:2] == ("/engines/hf/bin/python", str(PAYLOADS / "hf_server"))
    read = vars(parser.parse_args(made.argv[2:]))
    assert read["model"] == "/models/tiny"
    assert read["served_model_name"] == "served"
    assert (read["port"], read["device"], read["kv_cache_memory_bytes"]) == (4000, "cpu", 1000000)
    for name, value in options.items():
        if name not in ("api_key", "extra_args"):
            assert read[name] == value, name
    assert "s3cret" not in " ".join(made.argv)
    assert made.env["HF_SERVER_API_KEY"] == "s3cret"


def test_the_engine_knows_all_flags_of_the_server(parser):
    """Each is an option of ours, given in extra_args, or refused there with the reason."""
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert flags - {"-h", "--help"} == {*hf._OWN_FLAGS, *hf._FORBIDDEN}


def test_adapters_are_loaded_at_run_time_by_those_who_have_the_administrative_key(
    environment: EngineEnvironment,
):
    """With another key, anyone could have the server read any of its folders."""
    flag = "--allow-runtime-lora-updating"
    made = command(environment, enable_lora=True, api_key="s3cret")
    assert flag in made.argv
    assert made.env["HF_SERVER_ADMIN_KEY"] == "adm1n"
    assert made.env["HF_SERVER_API_KEY"] == "s3cret"
    assert flag not in command(environment).argv


@pytest.mark.parametrize(
    ("field", "wrong", "fine"),
    [
        ("tensor_parallel_size", 2, 1),
        ("pipeline_parallel_size", 2, 1),
        ("data_parallel_size", 2, 1),
        ("enable_prefix_caching", True, False),
        ("enable_chunked_prefill", False, True),
        ("enforce_eager", False, True),
    ],
)
def test_options_that_mean_nothing_here_are_refused(
    environment: EngineEnvironment, field: str, wrong: object, fine: object
):
    """The error says what to do instead; what is the case anyway may be said."""
    with pytest.raises(ConfigurationError, match=field) as caught:
        check(environment, **{field: wrong})
    assert caught.value.fix
    check(environment, **{field: fine})
    assert not any(field.replace("_", "-") in word for word in command(environment).argv)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_loras": 2}, "enable_lora"),
        ({"env_vars": {"HF_SERVER_API_KEY": "x"}}, "api_key"),
        ({"extra_args": "--port 3"}, "option port"),
        ({"extra_args": "--dtype float32"}, "option dtype"),
        ({"extra_args": "--allow-runtime-lora-updating"}, "enable_lora"),
    ],
)
def test_contradictions_are_refused_before_anything_starts(
    environment: EngineEnvironment, options: dict[str, object], said: str
):
    """The error names what to use instead."""
    with pytest.raises(ConfigurationError) as caught:
        check(environment, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize("extra", ["--devise cpu", "--device tpu", "--kv-cache-memory-bytes"])
def test_flags_that_the_server_would_not_take_are_refused(
    environment: EngineEnvironment, extra: str
):
    """An unknown flag, a value that is none, and a value that is missing."""
    with pytest.raises(FlagError):
        check(environment, extra_args=extra)


def test_the_environment_has_no_secrets_and_no_foreign_python_path(
    environment: EngineEnvironment, monkeypatch: pytest.MonkeyPatch
):
    """CUDA's, OpenMP's and the hub's variables are handed on, PYTHONPATH and others' keys not."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    env = command(environment, env_vars={"HF_HOME": "/hub"}).env
    assert env["CUDA_VISIBLE_DEVICES"] == "1"
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["HF_HOME"] == "/hub"
    assert not {"PYTHONPATH", "OPENAI_API_KEY", "HF_SERVER_API_KEY"} & env.keys()


def test_metrics_are_read():
    """The queue and what has been counted; a body without the queue says nothing."""
    signal = ENGINE.load_signal
    assert signal.parse(METRICS) == Load(
        running=3, waiting=2, prompt_tokens=30, generation_tokens=50
    )
    assert signal.parse("hf:num_requests_running 3\n") is None
    assert signal.parse(METRICS.replace("hf:", "vllm:")) is None


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_its_environment_is_pinned(variant: str):
    """What the server imports is in both variants, and nothing of vLLM's."""
    plan = plan_environment(HfEngine.installation, variant=variant)
    lines = [line for line in plan.requirements.splitlines() if not line.startswith(("#", " "))]
    assert all(re.match(r"[a-z0-9.\-]+==[^ ;]+( ; .+)?( \\)?$", line) for line in lines)
    assert "://" not in plan.requirements
    names = {line.partition("==")[0] for line in lines}
    needed = {
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "xgrammar",
        "aiohttp",
        "jinja2",
        "gguf",
    }
    assert needed <= names
    assert f"\ntransformers=={plan.version} " in plan.requirements
    assert any(name.startswith("nvidia-") for name in names) == (variant == "cuda")
    assert "vllm" not in names
