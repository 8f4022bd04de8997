"""A server that dies under work: restarted, what was in flight asked again, the killer found."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from functools import partial

import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.layers import exchange, settled, whole_reply

from enginehouse import (
    ChatPrompt,
    Message,
    SampleRequest,
    SampleResponse,
    SamplingParameters,
)
from enginehouse.client.admission import Admission
from enginehouse.client.exchange import Exchange, Reply
from enginehouse.client.redelivery import Redelivery
from enginehouse.core.errors import (
    AdapterError,
    EngineKilledError,
    ServerFaultError,
    ServerGoneError,
)
from enginehouse.deployment import preparation
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.deployment.supervision import Supervisor
from enginehouse.runtime.context import Context
from enginehouse.servers.health import Health
from enginehouse.servers.records import ServerState, list_servers
from enginehouse.servers.server import OwnedServer
from enginehouse.servers.stopping import stop_server
from enginehouse.servers.timings import TIMINGS, Timings
from enginehouse.store.layout import Layout

SLOW = {"VLLM_FAKE_TOKEN_LATENCY": "0.02"}


def asking(text: str, *, tokens: int = 16) -> SampleRequest:
    """A request that takes a third of a second."""
    return SampleRequest(
        prompt=ChatPrompt((Message("user", text),)),
        parameters=SamplingParameters(max_tokens=tokens),
    )


async def until(condition) -> None:
    """Wait for a condition, at most half a minute."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.02)


@pytest.fixture
def served(house: House, monkeypatch: pytest.MonkeyPatch):
    """Serve the fake with these settings, and note the incidents."""
    incidents: list = []
    notes: list[str] = []

    def serve(timings: Timings = TIMINGS, *, env: dict[str, str] | None = None, **settings: object):
        monkeypatch.setattr(preparation, "OwnedServer", partial(OwnedServer, timings=timings))
        values = {"model": str(house.model()), "server": {"env_vars": SLOW | (env or {})}}
        config = parse(ServeConfig, values | settings, origin="test")
        return opened(
            config,
            layout=Layout.from_environment(),
            notify=notes.append,
            concurrency=8,
            incidents=incidents,
        )

    serve.incidents, serve.notes = incidents, notes
    return serve


@pytest.mark.slow
async def test_killed_under_work(house: House, served):
    """Every request is answered; the server is a new one at the old address."""
    async with served() as ready:
        asked = [asyncio.create_task(ready.sampler.sample(asking(f"{n}"))) for n in range(24)]
        await until(lambda: ready.sampler.in_flight == 8)
        os.kill(ready.server.pid, signal.SIGKILL)
        responses = await asyncio.gather(*asked)
        assert all(response.completions[0].finish_reason for response in responses)
    (incident,) = served.incidents
    assert incident.in_flight == 8
    assert incident.consequence == "started again"
    assert "SIGKILL" in " ".join(served.notes)
    house.nothing_left()


@pytest.mark.slow
async def test_killed_while_nobody_asks(house: House, served):
    """The next request finds a server."""
    async with served() as ready:
        os.kill(ready.server.pid, signal.SIGKILL)
        await until(lambda: served.incidents)
        assert (await ready.sampler.sample(asking("x"))).completions
    assert served.incidents[0].in_flight == 0
    house.nothing_left()


@pytest.mark.slow
async def test_given_up_after_too_many_restarts(house: House, served):
    """Whoever asks is told so, with cause and log, and so is whoever asks later."""
    async with served(Timings(glance=0.05), max_restarts=1) as ready:
        asked = asyncio.create_task(ready.sampler.sample(asking("x", tokens=400)))
        for deaths in (1, 2):
            pid = ready.server.pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda deaths=deaths: len(served.incidents) == deaths)
            if deaths == 1:
                await until(lambda pid=pid: ready.server.pid != pid)
        for late in (asked, ready.sampler.sample(asking("y"))):
            with pytest.raises(ServerGoneError, match="1 restarts") as caught:
                await late
            assert caught.value.log is not None
    assert [i.consequence for i in served.incidents] == [
        "started again",
        "given up after 1 restarts (max_restarts)",
    ]
    assert [i.given_up for i in served.incidents] == [False, True]
    house.nothing_left()


@pytest.mark.slow
async def test_cancelled_while_it_is_started_again(house: House, served):
    """The caller's cancellation is no lost request: it ends at once, and nothing is left."""
    async with served() as ready:
        asked = asyncio.create_task(ready.sampler.sample(asking("x", tokens=400)))
        await until(lambda: ready.sampler.in_flight)
        os.kill(ready.server.pid, signal.SIGKILL)
        await until(lambda: served.incidents)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    house.nothing_left()


def killers(path, *, reply: str, match: str = "KILL") -> dict[str, str]:
    """env_vars of a fake that a request with the word ends, as seeded chunked prefill ends vLLM."""
    path.write_text(json.dumps([{"fault": "die", "match": match, "reply": reply}]))
    return {"VLLM_FAKE_FAULTS": str(path)}


@pytest.mark.slow
@pytest.mark.parametrize("reply", ["500", "reset", "hang"])
async def test_the_killer_is_found_and_all_others_are_answered(
    house: House, served, tmp_path, reply
):
    """It dies with others, then alone twice: only it fails, with the engine's own cause."""
    texts = [f"{n}" for n in range(10)]
    texts.insert(4, "KILL")
    async with served(env=killers(tmp_path / "faults.json", reply=reply)) as ready:
        results = await asyncio.gather(
            *(ready.sampler.sample(asking(text)) for text in texts), return_exceptions=True
        )
        error = results.pop(4)
        assert isinstance(error, EngineKilledError), error
        assert "offset" in str(error) or "seed" in str(error)
        assert all(isinstance(result, SampleResponse) for result in results)
        await until(lambda: len(served.incidents) == 3)
    assert {incident.kind for incident in served.incidents} == {"engine_died"}
    house.nothing_left()


@pytest.mark.slow
async def test_an_error_of_a_living_server_is_the_callers(house: House, served, tmp_path):
    """A 500 from a server that goes on working is no death."""
    (tmp_path / "faults.json").write_text('[{"fault": "status", "status": 500, "match": "BAD"}]')
    async with served(env={"VLLM_FAKE_FAULTS": str(tmp_path / "faults.json")}) as ready:
        with pytest.raises(ServerFaultError):
            await ready.sampler.sample(asking("BAD"))
        assert (await ready.sampler.sample(asking("good"))).completions
    assert served.incidents == []


@pytest.mark.slow
async def test_an_engine_that_hangs_is_killed_and_replaced(house: House, served, tmp_path):
    """/health says 200 all the time: no token and no answer to a canary tell that it is dead."""
    timings = Timings(canary=0.5, degraded_after=1.0, look=0.2)
    state = tmp_path / "state"
    dead = {"fault": "die", "nth": [4], "reply": "hang", "lives": True, "health": 200}
    (tmp_path / "faults.json").write_text(json.dumps([dead]))
    env = {"VLLM_FAKE_FAULTS": str(tmp_path / "faults.json"), "VLLM_FAKE_STATE": str(state)}
    async with served(timings, env=env, progress_timeout=2.5) as ready:
        for n in range(8):
            assert (await ready.sampler.sample(asking(f"{n}"))).completions
    (incident,) = served.incidents
    assert incident.in_flight == 1
    assert any("degraded" in note for note in served.notes)
    house.nothing_left()


@pytest.mark.slow
async def test_who_waits_when_the_block_ends_is_told(house: House, served):
    """Nobody hangs for ever on a server that will not be started again."""
    async with served() as ready:
        asked = asyncio.create_task(ready.sampler.sample(asking("x", tokens=400)))
        await until(lambda: ready.sampler.in_flight)
        os.kill(ready.server.pid, signal.SIGKILL)
        await until(lambda: served.incidents)
    async with asyncio.timeout(10):
        with pytest.raises(ServerGoneError, match="stopped"):
            await asked
    house.nothing_left()


@pytest.mark.slow
async def test_a_stopped_server_is_not_started_again(house: House, served):
    """Whatever the supervisor writes meanwhile; whoever asks is told who ended it."""
    layout = Layout.from_environment()
    async with served(Timings(look=0.05)) as ready:
        asked = asyncio.create_task(ready.sampler.sample(asking("x", tokens=400)))
        await until(lambda: ready.sampler.in_flight)
        os.kill(ready.server.pid, signal.SIGSTOP)  # it does not end at once, and does not answer
        stopping = asyncio.create_task(
            stop_server(ready.server.name, layout=layout, timings=Timings(stop_grace=1.5))
        )
        with pytest.raises(ServerGoneError, match="enginehouse stop"):
            await asked
        await stopping
        assert list_servers(layout) == []
    assert [i.consequence for i in served.incidents] == ["it was stopped by `enginehouse stop`"]
    house.nothing_left()


class Working:
    """What looks at a server that works."""

    has_worked = False

    async def glance(self) -> Health:
        """It answers."""
        return Health(state=ServerState.READY)

    look = glance

    def restarted(self) -> None:
        """It is another process."""


class Restarting:
    """A server that can be started again; nothing of it is real."""

    server = type("Server", (), {"name": "tiny", "log": None})
    context = Context()
    timings = TIMINGS

    def hold_port(self) -> None:
        """There is none."""

    def is_stopped(self) -> bool:
        """Never."""
        return False

    def exit_code(self) -> None:
        """It runs."""

    def diagnose(self) -> None:
        """Its log says nothing."""

    async def restart(self) -> None:
        """At once."""


@pytest.mark.slow
@pytest.mark.parametrize("failures", [0, 1])
async def test_what_was_told_is_restored_before_anybody_gets_in(failures):
    """Requests wait until that is done; if it fails, the server is started once more."""
    incidents, order, waiting = [], [], []
    layer = Redelivery(admission=Admission(), patience=60.0)
    supervisor = Supervisor(
        Restarting(),
        monitor=Working(),
        redelivery=layer,
        max_restarts=3,
        on_incident=incidents.append,
    )

    async def forward(_: Exchange) -> Reply:
        order.append("somebody")
        return whole_reply()

    async def restore() -> None:
        waiting.append(asyncio.create_task(layer.send(exchange(), forward)))
        await settled()
        order.append("restored")
        if len(waiting) <= failures:
            raise AdapterError("it is gone")

    supervisor.restorations.append(restore)
    supervisor.watching = asyncio.create_task(supervisor.run())
    supervisor.condemn("a reload hangs")
    await until(lambda: len(order) == 2 + 2 * failures)
    assert order == ["restored"] * (1 + failures) + ["somebody"] * (1 + failures)
    assert [incident.cause for incident in incidents] == ["its log does not say", "it is gone"][
        : 1 + failures
    ]
    supervisor.watching.cancel()
    await asyncio.gather(supervisor.watching, *waiting, return_exceptions=True)
