"""Who answers: by the digest of the weights, or by whatever else is known of a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.tiny_adapters import BASE
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.client.transport import WireReply, WireRequest, open_transport
from enginehouse.core.errors import ConnectionFailedError
from enginehouse.deployment.configuration import AskConfig, ServeConfig, parse
from enginehouse.engines.vllm.wire import VLLM_WEIGHTS
from enginehouse.gateway.identity import Identity, WeightsName, identification_of
from enginehouse.runtime.context import Context
from enginehouse.testing.fake_engine import running_fake_engine
from enginehouse.weights.checkpoint import digest_of
from enginehouse.weights.replacement import PENDING


class Answering:
    """A transport to a server that takes its time to say what its weights are called."""

    def __init__(self, *names: str | int) -> None:
        self.names = list(names)
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def send(self, request: WireRequest, *, streamed: bool = False) -> WireReply:
        """The next name; the last one for ever. A number is an error status, 0 no reply."""
        assert (request.path, streamed) == ("/weight_info", False)
        self.asked += 1
        name = self.names.pop(0) if len(self.names) > 1 else self.names[0]
        await self.may_answer.wait()
        if name == 0:
            raise ConnectionFailedError("refused")
        status = name if isinstance(name, int) else 200
        body = b'{"weight_version": "%s"}' % str(name).encode()
        return WireReply(
            status=status, headers={}, body=body, retry_after=None, started=0, elapsed=0
        )

    async def close(self) -> None:
        """Nothing."""


async def test_a_server_is_asked_once_for_all_who_wait():
    """Nobody is given a name that was asked for before."""
    transport = Answering("a", "b", "c")
    names = WeightsName(transport, VLLM_WEIGHTS)  # type: ignore[arg-type]
    transport.may_answer.clear()
    first = asyncio.create_task(names.ask())
    while not transport.asked:  # noqa: ASYNC110 - tasks bring it about
        await asyncio.sleep(0)
    rest = [asyncio.create_task(names.ask()) for _ in range(100)]
    await asyncio.sleep(0)
    transport.may_answer.set()
    assert await first == "a"
    assert set(await asyncio.gather(*rest)) == {"b"}
    assert await names.ask() == "c"
    assert transport.asked == 3
    await names.close()


@pytest.mark.parametrize("trouble", [404, 500, 0])
async def test_a_server_that_does_not_say(trouble):
    """It is None, and the next one asks again."""
    names = WeightsName(Answering(trouble, "a"), VLLM_WEIGHTS)  # type: ignore[arg-type]
    assert await names.ask() is None
    assert await names.ask() == "a"
    await names.close()


async def test_those_who_give_up_do_not_spoil_it_for_others():
    """A client that left is no reason to ask again."""
    transport = Answering("a")
    names = WeightsName(transport, VLLM_WEIGHTS)  # type: ignore[arg-type]
    one, other = (asyncio.create_task(names.ask()) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    assert await other == "a"
    await names.close()


def test_every_part_counts():
    """Two identities are the same only if all of them are."""
    parts = [
        Identity(),
        Identity(weights="a"),
        Identity(weights="b"),
        Identity(weights="a", chat_template="t"),
        Identity(weights="a", engine="vllm"),
        Identity(weights="a", engine="vllm", engine_version="1"),
        Identity(weights="a", dtype="float32"),
        Identity(weights="a", options=("--quantization", "fp8")),
        Identity(server="http://a", model="m"),
        Identity(server="http://a", model="m", root="r"),
        Identity(server="http://a", model="m", named="1-a"),
    ]
    assert len({one.digest for one in parts}) == len(parts)
    assert Identity(weights="a").digest == Identity(weights="a").digest


@pytest.mark.slow
async def test_a_checkpoint_that_is_open_on_a_running_server(house: House, tmp_path):
    """Its digest is known for as long as its target is open."""
    a, b = (write_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    del house
    async with running_fake_engine(model=str(a)) as engine:
        plan = parse(AskConfig, {"url": engine.url}, origin="test")
        async with (
            opened(plan) as deployment,
            identification_of(deployment, Context()) as identification,
        ):
            own = await identification.now()
            assert own is not None
            assert (own.weights, own.server) == (None, engine.url)
            assert own.root == digest_of(a, layout=Context().layout)
            async with deployment.target(b):
                other = await identification.now()
                assert other is not None
                assert other.weights == digest_of(b, layout=Context().layout)
                assert await identification.after(other, weights_digest=None) == other
                assert await identification.after(own, weights_digest=None) is None
            back = await identification.now()
            assert back is not None
            assert back.weights is None
            assert back != own  # it was swapped, and is called so


@pytest.mark.slow
async def test_weights_that_are_being_loaded(house: House, tmp_path):
    """It is not certain who answers."""
    a = write_checkpoint(tmp_path / "a")
    del house
    async with running_fake_engine(model=str(a)) as engine:
        plan = parse(AskConfig, {"url": engine.url}, origin="test")
        async with (
            opened(plan) as deployment,
            identification_of(deployment, Context()) as identification,
        ):
            before = await identification.now()
            assert before is not None
            await rename(engine.url, f"{PENDING}1-b")
            assert await identification.now() is None
            assert await identification.after(before, weights_digest=None) is None
            await rename(engine.url, "1-b")
            assert await identification.now() != before


async def rename(url: str, name: str) -> None:
    """Tell a server what its weights are called."""
    async with open_transport(url) as transport:
        assert (await transport.send(VLLM_WEIGHTS.name(name))).status == 200


@pytest.mark.slow
async def test_what_a_server_of_our_own_was_started_with(house: House, tmp_path):
    """What may change answers counts; memory, batches and ports do not."""
    model = write_checkpoint(tmp_path / "a", shapes=dict(BASE))
    digests = [
        await identity_of(model),
        await identity_of(model, max_num_seqs=3, gpu_memory_utilization=0.5),
        await identity_of(model, max_model_len=64),
        await identity_of(model, extra_args="--kv-cache-dtype fp8"),
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


async def identity_of(model: Path, **server: object) -> str:
    """The identity of a server with these options."""
    plan = parse(ServeConfig, {"model": str(model), "server": server}, origin="test")
    async with (
        opened(plan) as deployment,
        identification_of(deployment, Context()) as identification,
    ):
        identity = await identification.now()
        assert identity is not None
        assert identity.weights == digest_of(model, layout=Context().layout)
        return identity.digest
