"""A server by its user's own command: what the command is told, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capability
from enginehouse.engines.base import LaunchContext, configured
from enginehouse.engines.generic.engine import GenericEngine
from enginehouse.engines.options import ServerOptions
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.servers.sessions import one_token_request

ENVIRONMENT = EngineEnvironment(
    engine="generic",
    version="unknown",
    variant="cpu",
    executable=Path("/bin/sh"),
    key=None,
    flags={},
)


def options(**values: object) -> ServerOptions:
    """Options with a command."""
    return ServerOptions.model_validate({"command": "serve --port $PORT", **values})


def command(**values: object) -> Command:
    """The command of a server with these options."""
    context = LaunchContext(
        environment=ENVIRONMENT,
        model_path="m",
        served_model_name="served",
        port=4000,
        internal_port=4001,
        start_limit=60,
        admin_key="adm1n",
    )
    return GenericEngine().command(options(**values), context=context)


def engine(**values: object) -> GenericEngine:
    """The engine of a server with these options."""
    made = configured(GenericEngine(), options(**values))
    assert isinstance(made, GenericEngine)
    return made


def test_a_shell_runs_the_command(monkeypatch: pytest.MonkeyPatch):
    """It is told where to listen, and under which name, by variables."""
    monkeypatch.setenv("SOME_SETTING", "1")
    others = ("OPENAI_API_KEY", "HF_TOKEN_FOR_GPQA", "db_passwd", "ENGINEHOUSE_API_KEY")
    for name in others:
        monkeypatch.setenv(name, "not the server's")
    made = command(extra_args="--size 'a b'", api_key="k", env_vars={"HF_TOKEN": "t"})

    assert made.argv == ("/bin/sh", "-c", 'serve --port $PORT "$@"', "sh", "--size", "a b")
    told = {name: made.env[name] for name in ("HOST", "PORT", "SERVED_MODEL_NAME", "API_KEY")}
    assert told == {
        "HOST": "127.0.0.1",
        "PORT": "4000",
        "SERVED_MODEL_NAME": "served",
        "API_KEY": "k",
    }
    assert made.env["SOME_SETTING"] == "1"
    assert made.env["HF_TOKEN"] == "t"
    assert not made.env.keys() & set(others)
    assert "adm1n" not in str(made.env)


@pytest.mark.parametrize(
    "values",
    [
        {"command": None},
        {"command": "  "},
        {"tensor_parallel_size": 2},
        {"enable_lora": True},
        {"env_vars": {"PORT": "1"}},
    ],
)
def test_what_it_cannot_be_told_is_refused(values: dict[str, object]):
    """There is no flag for it that is known."""
    with pytest.raises(ConfigurationError):
        GenericEngine().check(options(**values), environment=ENVIRONMENT)


def test_its_endpoints_are_those_of_its_options():
    """By default both, and /health."""
    both = engine()
    assert both.endpoints.health == "/health"
    assert both.wire.chat is not None
    assert both.wire.completions is not None
    assert one_token_request(both, "m").path == "/v1/chat/completions"
    ready = engine(health_path="/v1/health/ready", only_endpoint="completions")
    assert ready.endpoints.health == "/v1/health/ready"
    assert Capability.CHAT not in ready.capabilities(None).supports
    assert ready.wire.chat is None
    assert one_token_request(ready, "m").path == "/v1/completions"
    assert engine(only_endpoint="chat").wire.completions is None


def test_a_server_that_others_can_reach_must_check_its_key():
    """It is asked without one, and must refuse."""
    assert engine().endpoints.guarded is None
    assert engine(host="0.0.0.0", api_key="k").endpoints.guarded == "/v1/models"
