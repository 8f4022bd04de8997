"""`enginehouse.serve`: a server for the length of a block."""

from __future__ import annotations

import asyncio
import os
import platform
import re

import pytest
from tests.support.command_line import House, port_is_free

import enginehouse
from enginehouse import ChatPrompt, EnginehouseError, Message, SampleRequest
from enginehouse.core.errors import ConfigurationError, ModelError, StartError
from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.preparation import choose_engine
from enginehouse.runtime.context import Context
from enginehouse.testing.fake_engine import running_fake_engine

HELLO = SampleRequest(prompt=ChatPrompt((Message("user", "Say hello."),)))


def answers(house: House) -> dict[str, str]:
    """env_vars of a server that says hello."""
    name, _, path = house.answers({"hello": "Hello."}).partition("=")
    return {name: path}


@pytest.mark.slow
async def test_a_server_for_a_block(house: House):
    """It is asked through server.sampler, has the options given, and is gone after the block."""
    path = str(house.model())
    notes: list[str] = []
    async with enginehouse.serve(
        path, max_model_len=1024, env_vars=answers(house), notify=notes.append
    ) as server:
        assert server.models == ("tiny",)
        response = await server.sampler.sample(HELLO)
        assert response.completions[0].text == "Hello."
        assert server.provenance.engine_arguments is not None
        assert "--max-model-len" in server.provenance.engine_arguments
        assert not port_is_free(server.url)
    house.nothing_left()
    assert port_is_free(server.url)
    assert any(note.startswith("engine: vllm") for note in notes)


@pytest.mark.slow
async def test_many_requests_share_it(house: House):
    """Hundreds at once are bounded by the sampler, all answered, in order."""
    async with enginehouse.serve(str(house.model()), env_vars=answers(house)) as server:
        responses = await asyncio.gather(*(server.sampler.sample(HELLO) for _ in range(300)))
    assert {response.completions[0].text for response in responses} == {"Hello."}


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_however_the_block_ends_the_server_is_stopped(
    house: House, error: type[BaseException]
):
    """The user's own exception passes through."""
    with pytest.raises(error):
        async with enginehouse.serve(str(house.model())):
            raise error
    house.nothing_left()


@pytest.mark.slow
async def test_two_at_once(house: House):
    """Two models side by side have ports, logs and names of their own."""
    one, other = str(house.model("one")), str(house.model("other"))
    async with enginehouse.serve(one) as first, enginehouse.serve(other) as second:
        assert (first.models, second.models) == (("one",), ("other",))
        assert first.url != second.url
        assert first.server.log != second.server.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"max_modl_len": 5}, ConfigurationError, "did you mean 'max_model_len'?"),
        ({"max_model_len": "long"}, ConfigurationError, "'server.max_model_len'"),
        ({"engine": "vlm"}, ConfigurationError, "no engine called 'vlm'"),
        ({"extra_args": ["--swap-space", "4"]}, ConfigurationError, "no longer has --swap-space"),
        ({"host": "0.0.0.0"}, ConfigurationError, "needs an API key"),
        ({"python": "/nowhere"}, EnginehouseError, "there is no Python at /nowhere"),
        ({"env_vars": {"VLLM_FAKE_START_ERROR": "ValueError: no"}}, StartError, "ValueError: no"),
    ],
)
async def test_what_is_wrong_is_raised(
    house: House, settings: dict[str, object], kind: type[Exception], said: str
):
    """The same errors as on the command line, with the same words; nothing is left."""
    with pytest.raises(kind) as caught:
        async with enginehouse.serve(str(house.model()), **settings):
            pytest.fail("it cannot be ready")
    assert said in str(caught.value)
    house.nothing_left()


async def test_no_model(house: House):
    """A folder without a model is told before a server is started."""
    with pytest.raises(ModelError, match=re.escape(str(house.work))):
        async with enginehouse.serve(str(house.work)):
            pytest.fail("it cannot be ready")


async def test_a_server_of_somebody_else(house: House):
    """It is asked, not watched, and left running; what cannot be known is null with its reason."""
    async with running_fake_engine(model="theirs") as handle:
        async with open_deployment(AskConfig(url=handle.url), Context()) as server:
            response = await server.sampler.sample(HELLO)
            assert response.completions[0].text
            assert server.provenance.weights_digest is None
            assert server.provenance.unknown["weights_digest"]
        os.kill(handle.pid, 0)


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_where_no_engine_runs(monkeypatch: pytest.MonkeyPatch, system: str):
    """Elsewhere than on Linux: what could be done instead."""
    monkeypatch.setattr(platform, "system", lambda: system)
    notes: list[str] = []
    with pytest.raises(ConfigurationError, match=system.lower()) as caught:
        choose_engine(None, notify=notes.append)
    assert "--url" in str(caught.value)
    assert choose_engine("vllm", notify=notes.append).name == "vllm"
    assert notes == ["engine: vllm, as requested"]
