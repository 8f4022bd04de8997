"""Recording and replay through a gateway, before the fake engine, whose every answer has an id."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.gateways import gateway_options
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.core.errors import StoreError
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import AskConfig, ServeConfig, parse
from enginehouse.deployment.swapping import swapper_of
from enginehouse.gateway.service import Gateway, open_gateway
from enginehouse.runtime.context import Context
from enginehouse.testing.fake_engine import running_fake_engine
from enginehouse.testing.fake_vendors import FakeOpenAI, running_fake_vendor
from enginehouse.weights.checkpoint import digest_of

ROOT = Path(__file__).parents[2]
COMPLETIONS = "/v1/completions"
GREEDY = {"prompt": "hello", "temperature": 0, "max_tokens": 8}
SAMPLED = {"prompt": "hello", "temperature": 1, "max_tokens": 8}


class Client:
    """Asks one gateway."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self._session = session
        self.gateway = gateway

    async def post(self, body: dict[str, Any], path: str = COMPLETIONS) -> tuple[int, bytes]:
        """The status and the body of the reply."""
        async with self._session.post(path, json=body) as reply:
            return reply.status, await reply.read()

    async def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer."""
        status, reply = await self.post(body)
        assert status == 200, reply
        answer: dict[str, Any] = json.loads(reply)
        return answer

    async def text(self, body: dict[str, Any]) -> str:
        """The text of a whole answer."""
        text: str = (await self.ask(body))["choices"][0]["text"]
        return text

    async def get(self, path: str) -> str:
        """What is shown there."""
        async with self._session.get(path) as reply:
            return await reply.text()


@asynccontextmanager
async def before(
    deployment: Deployment, *, said: list[str] | None = None, **options: Any
) -> AsyncIterator[Client]:
    """A client of a gateway before the deployment."""
    context = Context(notify=([] if said is None else said).append)
    async with (
        open_gateway(deployment, gateway_options(**options), context) as gateway,
        aiohttp.ClientSession(gateway.url) as session,
    ):
        yield Client(session, gateway)


@asynccontextmanager
async def at(url: str, **options: Any) -> AsyncIterator[Client]:
    """A client of a gateway before a running server."""
    plan = parse(AskConfig, {"url": url}, origin="test")
    async with opened(plan) as deployment, before(deployment, **options) as client:
        yield client


@pytest.fixture
async def engine() -> AsyncIterator[str]:
    """The address of an engine that takes no time."""
    async with running_fake_engine() as handle:
        yield handle.url


@pytest.mark.slow
async def test_a_repeated_request_is_answered_from_the_journal(engine, tmp_path):
    """Byte for byte, whole or streamed, now and after a restart of the gateway."""
    stream = GREEDY | {"stream": True, "stream_options": {"include_usage": True}}
    chat = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    async with at(engine, record=tmp_path, replay=True) as client:
        first = [await client.post(body) for body in (GREEDY, stream)]
        first.append(await client.post(chat, "/v1/chat/completions"))
        assert [status for status, _ in first] == [200] * 3
        again = [await client.post(body) for body in (GREEDY, stream)]
        again.append(await client.post(chat | {"user": "me"}, "/v1/chat/completions"))
        assert again == first
        assert client.gateway.figures().replayed == 3
        assert "enginehouse_gateway_replayed_total 3" in await client.get("/metrics")
    async with at(engine, record=tmp_path, replay=True) as client:
        assert [await client.post(body) for body in (GREEDY, stream)] == first[:2]
        assert (await client.ask(SAMPLED))["id"] != (await client.ask(SAMPLED))["id"]


@pytest.mark.slow
async def test_without_replay_nothing_is_answered_from_the_journal(engine, tmp_path):
    """It is recorded only."""
    async with at(engine, record=tmp_path) as client:
        assert (await client.ask(GREEDY))["id"] != (await client.ask(GREEDY))["id"]
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert sum('"type":"answer"' in line for line in lines) == 2


@pytest.mark.slow
async def test_a_resumed_program_is_given_what_it_was_given(engine, tmp_path):
    """In its order, also where each answer was left to chance; then it is asked on."""
    async with at(engine, record=tmp_path, resume=True) as client:
        ids = [(await client.ask(SAMPLED))["id"] for _ in range(3)]
    async with at(engine, record=tmp_path, resume=True) as client:
        again = [(await client.ask(SAMPLED))["id"] for _ in range(4)]
        assert again[:3] == ids
        assert again[3] not in ids
        assert client.gateway.figures().replayed == 3


@pytest.mark.slow
async def test_a_stream_stands_for_a_stream_only(engine, tmp_path):
    """Asked for whole, the same question is asked; and the other way round."""
    async with at(engine, record=tmp_path, replay=True) as client:
        _, streamed = await client.post(GREEDY | {"stream": True})
        answer = await client.ask(GREEDY)
        assert client.gateway.figures().replayed == 0
        assert streamed.endswith(b"data: [DONE]\n\n")
        assert await client.ask(GREEDY | {"stream": False}) == answer
        assert (await client.post(GREEDY | {"stream": True}))[1] == streamed


@pytest.mark.slow
async def test_errors_are_not_recorded(tmp_path):
    """A refusal is asked for again, and so is an answer of a server that failed."""
    fault = {"fault": "status", "status": 400, "first": 1, "path": COMPLETIONS}
    async with (
        running_fake_engine(faults=[fault]) as engine,
        at(engine.url, record=tmp_path, replay=True) as client,
    ):
        assert (await client.post(GREEDY))[0] == 400
        answer = await client.ask(GREEDY)
        assert await client.ask(GREEDY) == answer
        for _ in range(2):
            assert (await client.post(GREEDY | {"temperature": -1}))[0] == 400
        assert client.gateway.figures().replayed == 1


async def test_broken_streams_are_not_recorded(tmp_path):
    """The next one is asked for, and recorded as it is whole."""
    fault = {"fault": "reset", "at": "body", "first": 1, "path": COMPLETIONS}
    stream = GREEDY | {"stream": True}
    async with (
        running_fake_engine(faults=[fault]) as engine,
        at(engine.url, record=tmp_path, replay=True) as client,
    ):
        async with aiohttp.ClientSession(client.gateway.url) as session:
            try:
                async with session.post(COMPLETIONS, json=stream) as reply:
                    broken = await reply.read()
            except aiohttp.ClientPayloadError:
                broken = b""
        assert b"[DONE]" not in broken
        _, whole = await client.post(stream)
        assert whole.endswith(b"data: [DONE]\n\n")
        assert (await client.post(stream))[1] == whole
        assert client.gateway.figures().replayed == 1


@pytest.mark.slow
async def test_what_a_client_did_not_wait_for_is_not_recorded(tmp_path):
    """Neither a stream that it left, nor a whole answer."""
    async with (
        running_fake_engine(token_latency=0.1) as engine,
        at(engine.url, record=tmp_path, replay=True) as client,
    ):
        long = GREEDY | {"max_tokens": 100, "ignore_eos": True}
        async with aiohttp.ClientSession(client.gateway.url) as session:
            async with session.post(COMPLETIONS, json=long | {"stream": True}) as reply:
                await reply.content.readline()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), session.post(COMPLETIONS, json=long):
                    pass
        async with asyncio.timeout(20):
            while client.gateway.figures().in_flight:  # noqa: ASYNC110 - the server's doing
                await asyncio.sleep(0.02)
    assert '"type":"answer"' not in (tmp_path / "answers.jsonl").read_text()


@pytest.mark.slow
async def test_two_gateways_do_not_share_a_journal(engine, tmp_path):
    """The second does not start; the first goes on."""
    async with at(engine, record=tmp_path, replay=True) as client:
        answer = await client.ask(GREEDY)
        with pytest.raises(StoreError, match="recorded"):
            async with at(engine, record=tmp_path):
                pass
        assert await client.ask(GREEDY) == answer


@pytest.mark.slow
async def test_a_server_whose_weights_are_not_known(tmp_path):
    """It is said what its answers are recorded under, which another address is not."""
    said: list[str] = []
    async with running_fake_engine() as one, running_fake_engine() as other:
        async with at(one.url, record=tmp_path, replay=True, said=said) as client:
            first = await client.ask(GREEDY)
        async with at(other.url, record=tmp_path, replay=True) as client:
            assert (await client.ask(GREEDY))["id"] != first["id"]
    (warning,) = [line for line in said if "not known" in line]
    assert one.url in warning
    assert "its model's name, its address and its version" in warning


@pytest.mark.slow
async def test_weights_that_somebody_else_swaps(house: House, tmp_path):
    """The server is asked what its weights are called, before and after each answer."""
    layout = Context().layout
    folders = [write_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    async with (
        running_fake_engine(model=str(folders[0])) as engine,
        at(engine.url, record=tmp_path / "journal", replay=True) as client,
        swapper_of(engine.url, layout=layout) as swapper,
    ):
        old = await client.ask(GREEDY)
        assert await client.ask(GREEDY) == old
        await swapper.swap(folders[1])
        new = await client.ask(GREEDY)
        assert new["choices"] != old["choices"]
        assert await client.ask(GREEDY) == new
        many = await asyncio.gather(*(client.ask(GREEDY) for _ in range(50)))
        assert many == [new] * 50
        await swapper.swap(folders[0])
        assert (await client.text(GREEDY)) == old["choices"][0]["text"]


GATEWAY = """
import asyncio, sys
from pathlib import Path
from tests.gateway.test_recorder_replaying import at

async def main():
    async with at(sys.argv[1], record=Path(sys.argv[2]), resume=True) as client:
        print(client.gateway.url, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@asynccontextmanager
async def gateway_process(engine: str, folder: Path) -> AsyncIterator[tuple[str, int]]:
    """The address and the pid of a gateway in a process of its own, which is killed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", GATEWAY, engine, str(folder)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        yield url, process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.slow
async def test_a_gateway_that_is_killed(tmp_path):
    """A program that begins again has every answer that it was given, and asks for the rest."""
    bodies = [SAMPLED | {"prompt": f"{n % 20}"} for n in range(60)]  # each question three times

    async def program(url: str, given: dict[int, str]) -> None:
        async with aiohttp.ClientSession(url) as session:

            async def ask(places: list[int]) -> None:
                for place in places:  # a question's repetitions one after the other
                    async with session.post(COMPLETIONS, json=bodies[place]) as reply:
                        given[place] = json.loads(await reply.read())["id"]

            await asyncio.gather(*(ask([n, n + 20, n + 40]) for n in range(20)))

    async with running_fake_engine(token_latency=0.01) as engine:
        first: dict[int, str] = {}
        async with gateway_process(engine.url, tmp_path) as (url, pid):
            running = asyncio.create_task(program(url, first))
            async with asyncio.timeout(30):
                while len(first) < 30:  # noqa: ASYNC110 - another process brings it about
                    await asyncio.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            await asyncio.gather(running, return_exceptions=True)
        assert 30 <= len(first) < 60
        second: dict[int, str] = {}
        async with gateway_process(engine.url, tmp_path) as (url, _):
            await program(url, second)
        assert len(set(second.values())) == 60
        assert {place: second[place] for place in first} == first
        recorded = (tmp_path / "answers.jsonl").read_text().count('"type":"answer"')
        assert recorded == 60


def serving(model: Path, **server: Any) -> ServeConfig:
    """A server of our own."""
    values = {"model": str(model), "server": {"enable_weight_swap": True} | server}
    return parse(ServeConfig, values, origin="test")


@pytest.mark.slow
async def test_new_weights_get_no_old_answers(house: House, tmp_path):
    """Swapped to and fro, and from another start, each checkpoint has its own answers."""
    a, b = (write_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    journal, layout = tmp_path / "journal", Context().layout
    async with (
        opened(serving(a)) as ready,
        before(ready, record=journal, replay=True) as client,
    ):
        old = await client.ask(GREEDY)
        assert await client.ask(GREEDY) == old
        assert ready.weights is not None
        await ready.weights.swap(b)
        new = await client.ask(GREEDY)
        assert new["choices"] != old["choices"]
        assert await client.ask(GREEDY) == new
        await ready.weights.swap(a)
        assert await client.ask(GREEDY) == old
    said: list[str] = []
    async with (
        opened(serving(b)) as ready,
        before(ready, record=journal, replay=True, said=said) as client,
    ):
        assert await client.ask(GREEDY) == new
        assert client.gateway.figures().replayed == 1
    assert not [line for line in said if "not known" in line]
    lines = [json.loads(line) for line in (journal / "answers.jsonl").read_text().splitlines()]
    identities = {
        line["digest"]: line["identity"]["weights"] for line in lines if line["type"] == "identity"
    }
    assert set(identities.values()) == {digest_of(one, layout=layout) for one in (a, b)}


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["drain", "abort"])
async def test_swaps_under_load(house: House, tmp_path, in_flight):
    """Whatever is in flight when the weights change: nothing is recorded under others."""
    folders = [write_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    prompts = [GREEDY | {"prompt": f"question {number}"} for number in range(12)]
    streams = [body | {"stream": True} for body in prompts]
    env = {"VLLM_FAKE_TOKEN_LATENCY": "0.01"}
    plan = serving(folders[0], env_vars=env)
    async with opened(plan) as ready:
        assert ready.weights is not None
        async with before(ready) as client:
            right: list[list[str]] = []
            for folder in folders:
                await ready.weights.swap(folder)
                right.append([await client.text(body) for body in prompts])
        assert right[0] != right[1]
        async with before(ready, record=tmp_path / "journal", replay=True) as client:
            for turn in range(6):
                asking = [asyncio.create_task(client.post(body)) for body in (*prompts, *streams)]
                await asyncio.sleep(0.02 * turn)
                await ready.weights.swap(folders[turn % 2], in_flight=in_flight)
                assert [await client.text(body) for body in prompts] == right[turn % 2]
                await asyncio.gather(*asking, return_exceptions=True)
            for turn in range(2):
                await ready.weights.swap(folders[turn])
                for body, expected in zip(streams, right[turn], strict=True):
                    _, reply = await client.post(body)
                    assert streamed_text(reply) == expected
            assert client.gateway.figures().replayed


def streamed_text(reply: bytes) -> str:
    """The text of a streamed completion."""
    events = [line[6:] for line in reply.decode().splitlines() if line.startswith("data: {")]
    choices = [json.loads(event)["choices"] for event in events]
    return "".join(one[0]["text"] for one in choices if one)


async def test_a_hosted_api(tmp_path, monkeypatch):
    """It is known by name and address; its seeds are best effort, and make nothing repeatable."""
    chat = {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}]}
    path, said = "/v1/chat/completions", list[str]()
    async with running_fake_vendor(FakeOpenAI()) as vendor:
        monkeypatch.setenv("OPENAI_API_KEY", "fake-key")
        monkeypatch.setenv("OPENAI_BASE_URL", vendor.url)
        plan = parse(AskConfig, {"model": "fake-model", "engine": "openai"}, origin="test")
        async with (
            opened(plan) as deployment,
            before(deployment, record=tmp_path, replay=True, said=said) as client,
        ):
            greedy, seeded = chat | {"temperature": 0}, chat | {"seed": 1}
            first = await client.post(greedy, path)
            assert first[0] == 200
            assert await client.post(greedy, path) == first
            assert await client.post(greedy | {"safety_identifier": "x"}, path) == first
            for _ in range(2):
                assert (await client.post(seeded, path))[0] == 200
        assert len(vendor.bodies) == 3
        assert "fake-key" not in (tmp_path / "answers.jsonl").read_text()
    assert any(f"the weights at {vendor.url} is not known" in line for line in said)
