from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.stack import ServerLayers
from enginehouse.client.wire import InFlight
from enginehouse.core.errors import ModelError, UnsupportedError, WeightsError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest, SampleResponse
from enginehouse.core.sampling import SamplingParameters
from enginehouse.engines.hf.engine import HfEngine
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_engine import running_fake_engine
from enginehouse.weights.checkpoint import digest_of
from enginehouse.weights.declared import Weights, read_declaration
from enginehouse.weights.swap import WeightSwapper

ENGINE = VllmEngine()
RELOAD = "/collective_rpc"
CANARY = {"path": "/v1/completions", "match": "capital of France"}
NO_NUMBER = {
    "id": "1",
    "model": "m",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    "choices": [
        {
            "text": "!",
            "finish_reason": "length",
            "logprobs": {"tokens": ["!"], "token_logprobs": [1e999], "top_logprobs": None},
        }
    ],
}


def asking(text: str, *, tokens: int = 8) -> SampleRequest:
    """A request whose answer is as long as it is told to be."""
    parameters = SamplingParameters(max_tokens=tokens, ignore_eos=True)
    return SampleRequest(prompt=TextPrompt(text), parameters=parameters)


@dataclass
class Room:
    """A fake server with the checkpoint `a`, another one, `b`, and the way to ask and to swap."""

    a: Path
    b: Path
    url: str
    file: Path
    layout: Layout
    sampler: HTTPSampler
    swapper: WeightSwapper

    async def ask(self, text: str = "x", *, tokens: int = 8) -> SampleResponse:
        """One answer."""
        return await self.sampler.sample(asking(text, tokens=tokens))

    async def text(self) -> str:
        """The answer to always the same question."""
        return (await self.ask()).completions[0].text

    async def post(self, path: str, body: Any = None) -> Any:
        """Tell the server something past the swapper."""
        async with aiohttp.ClientSession(self.url) as session, session.post(path, json=body) as got:
            return await got.json()

    async def name(self) -> str:
        """What the server calls its weights."""
        async with aiohttp.ClientSession(self.url) as session, session.get("/weight_info") as got:
            return (await got.json())["weight_version"]

    def digest(self, folder: Path) -> str:
        """Of its content now."""
        return digest_of(folder, layout=self.layout)

    async def refused(self, **options: Any) -> WeightsError:
        """What a swap to `b` fails with; the old weights are declared, requests get in."""
        with pytest.raises(WeightsError) as caught:
            await self.swapper.swap(self.b, **options)
        assert self.swapper.current.path == self.a
        return caught.value


@pytest.fixture
def room(tmp_path: Path, layout: Layout):
    """A room, with the fake's faults."""

    @asynccontextmanager
    async def make(
        faults: Sequence[Mapping[str, Any]] = (),
        *,
        latency: float = 0.0,
        command: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> AsyncIterator[Room]:
        a = write_checkpoint(tmp_path / "a", seed=1)
        b = write_checkpoint(tmp_path / "b", seed=2)
        started = Weights(path=a, digest=digest_of(a, layout=layout))
        file = tmp_path / "server" / "weights.json"
        async with AsyncExitStack() as stack:
            engine = await stack.enter_async_context(
                running_fake_engine(model=str(a), faults=faults, token_latency=latency, env=env)
            )
            server = server_at(engine.url, model=str(a), command=command)
            swapper = WeightSwapper(
                server,
                engine=ENGINE,
                started=started,
                file=file,
                layout=layout,
                **options,
            )
            sampler = HTTPSampler(
                engine.url,
                capabilities=ENGINE.capabilities(None),
                shared=ServerLayers(gate=swapper.gate),
            )
            await stack.enter_async_context(swapper)
            await stack.enter_async_context(sampler)
            yield Room(a, b, engine.url, file, layout, sampler, swapper)

    return make


def server_at(url: str, *, model: str, command: tuple[str, ...] = ()) -> Server:
    """A server as its starter knows it."""
    return Server(
        name="tiny",
        base_url=url,
        models=(model,),
        pid=None,
        log=None,
        engine="vllm",
        version=None,
        environment=None,
        command=command,
        api_key=None,
        owned=True,
    )


async def until(condition) -> None:
    """Wait for a condition, at most half a minute."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the server brings it about
            await asyncio.sleep(0.01)


async def test_a_swap_and_back(room):
    """Other answers, stamped with what gave them; back, the old ones exactly."""
    async with room() as it:
        first = await it.ask()
        assert first.weights_digest == it.digest(it.a)
        done = await it.swapper.swap(it.b)
        assert (done.before.path, done.after.path, done.after.version) == (it.a, it.b, 1)
        assert min(done.checking, done.draining, done.replacing, done.canary) > 0
        second = await it.ask()
        assert second.completions != first.completions
        assert second.weights_digest == it.digest(it.b) == it.swapper.current.digest
        assert await it.name() == f"1-{it.digest(it.b)[:12]}"
        assert read_declaration(it.file).declared == done.after
        await it.swapper.swap(it.a)
        assert (await it.ask()).completions == first.completions
        assert it.swapper.current.version == 2


async def test_sleeping_around_it(room):
    """The weights are awake before they are loaded, the cache after; requests wait meanwhile."""
    async with room(command=("vllm", "--enable-sleep-mode")) as it:
        before = await it.text()
        await it.swapper.swap(it.b)
        assert await it.text() != before
        await it.swapper.swap(it.a)
        assert await it.text() == before


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "status", "path": "/sleep", "status": 500, "nth": [1]},
        {"fault": "reset", "path": "/sleep", "nth": [1]},
        {"fault": "status", "path": "/wake_up", "status": 500, "nth": [1]},  # the weights
        {"fault": "status", "path": "/wake_up", "status": 500, "nth": [2]},  # the cache
        {"fault": "status", "path": RELOAD, "status": 500, "nth": [1]},
    ],
    ids=["sleep", "sleep-lost", "wake-weights", "wake-cache", "reload"],
)
async def test_a_failure_while_it_sleeps(room, fault):
    """Asleep it has no weights: wherever it stopped, the old ones are loaded again."""
    async with room([fault], command=("vllm", "--enable-sleep-mode")) as it:
        before = await it.text()
        assert (await it.refused(deadline=5)).restored
        async with asyncio.timeout(5):
            answer = await it.ask()
        assert (await it.text(), answer.weights_digest) == (before, it.digest(it.a))
        await it.swapper.swap(it.b)
        assert await it.text() != before


@pytest.mark.slow
async def test_it_falls_asleep_after_the_deadline(room):
    """Somebody else's request outlasts the drain: it is given up, and the server answers again."""
    body = {"prompt": "x", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
    async with room(latency=0.02, command=("vllm", "--enable-sleep-mode")) as it:
        before = await it.text()
        theirs = asyncio.create_task(it.post("/v1/completions", body))
        await asyncio.sleep(0.2)
        error = await it.refused(deadline=0.4)
        assert (error.kind, error.restored) == ("deadline", True)
        assert (await theirs)["choices"][0]["finish_reason"] == "abort"
        async with asyncio.timeout(5):
            assert await it.text() == before


@pytest.mark.parametrize("wrong", [{"shapes": {"x": (1,)}}, {"dtype": "int8"}, {"layers": 3}])
async def test_what_does_not_fit_never_reaches_the_server(room, tmp_path, wrong):
    """Refused before requests wait or anything is sent."""
    broken = [{"fault": "status", "path": "/(pause|collective_rpc|update.*)", "status": 500}]
    async with room(broken) as it:
        write_checkpoint(it.a, seed=1, layers=2)
        bad = write_checkpoint(tmp_path / "bad", **wrong)
        with pytest.raises(ModelError):
            await it.swapper.swap(bad)
        assert await it.name() == "default"
        assert await it.text()


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ({"fault": "status", "path": RELOAD, "status": 500}, "wire", "the reload: .*500"),
        ({"fault": "reset", "path": RELOAD}, "wire", "the reload: no reply from"),
        ({"fault": "truncate", "path": "/weight_info"}, "wire", "requests in flight: "),
        (
            {"fault": "truncate", "path": "/weight_info", "nth": [2]},
            "wire",
            "the reset of the prefix",
        ),
        (
            {"fault": "say", "path": "/reset_prefix_cache", "body": '{"success": false}'},
            "cache",
            "did not reset its prefix cache",
        ),
        ({"fault": "say", "path": "/reset_prefix_cache", "body": "{}"}, "wire", "the reset of"),
        (CANARY | {"fault": "status", "status": 500}, "canary", "four tokens failed"),
        (
            CANARY | {"fault": "say", "body": json.dumps(NO_NUMBER)},
            "canary",
            "four tokens failed",
        ),
        ({"fault": "say", "path": "/update_weight_version", "body": "{}"}, "restarted", "default"),
        ({"fault": "status", "path": "/pause", "status": 500}, "wire", "requests in flight"),
        ({"fault": "status", "path": "/resume", "status": 500}, "wire", "waiting requests"),
    ],
)
async def test_whatever_fails_once_is_taken_back(room, fault, kind, said):
    """The error names the step; the old weights answer as before, and a second swap succeeds."""
    async with room([{"nth": [1]} | fault]) as it:
        before = await it.text()
        error = await it.refused()
        assert error.restored
        assert error.kind == kind
        assert "the old ones answer as before" in error.message
        assert re.search(said, error.why or "")
        assert await it.text() == before
        assert (await it.ask()).weights_digest == it.digest(it.a)
        await it.swapper.swap(it.b)
        assert await it.text() != before


@pytest.mark.parametrize(("logprobs", "is_fine"), [([-0.1], True), ([-9999.0], False), ([], False)])
async def test_probabilities_must_be_finite(room, logprobs, is_fine):
    """An answer without them is none, though the server says 200; vLLM writes -9999 for -inf."""
    choice = NO_NUMBER["choices"][0] | {
        "logprobs": {"tokens": ["!"] * len(logprobs), "token_logprobs": logprobs}
    }
    body = json.dumps(NO_NUMBER | {"choices": [choice]})
    async with room([CANARY | {"fault": "say", "nth": [1], "body": body}]) as it:
        if is_fine:
            assert (await it.swapper.swap(it.b)).after.path == it.b
        else:
            error = await it.refused()
            assert (error.kind, error.restored) == ("canary", True)
            assert "has no probabilities" in error.why


@pytest.mark.slow
async def test_a_hang_ends_at_the_deadline(room):
    """In words; the old weights are back."""
    async with room([{"fault": "hang", "path": RELOAD, "nth": [1]}]) as it:
        before = await it.text()
        error = await it.refused(deadline=0.5)
        assert (error.kind, error.restored) == ("deadline", True)
        assert error.why == "the reload: not done within 0.5 s"
        assert await it.text() == before


@pytest.mark.slow
async def test_a_hang_for_good_says_that_the_old_weights_are_not_back(room):
    """Not to somebody who could start the server again; to others in the error."""
    hang = [{"fault": "hang", "path": RELOAD}]
    async with room(hang) as it:
        error = await it.refused(deadline=0.3)
        assert (error.kind, error.restored) == ("deadline", False)
        assert "are NOT back: the reload: not done within 0.3 s" in error.message
        assert await it.name() == f"loading 0-{it.digest(it.a)[:12]}"
    condemned: list[str] = []
    async with room(hang, condemn=condemned.append) as it:
        error = await it.refused(deadline=0.3)
        assert "started again with the old ones" in error.message
        assert len(condemned) == 1


async def test_old_weights_that_are_gone_are_not_back(room):
    """A folder that was overwritten holds no old weights any more."""
    async with room([{"fault": "status", "path": RELOAD, "status": 500, "nth": [2]}]) as it:
        await it.swapper.swap(it.b)
        write_checkpoint(it.b, seed=3)
        with pytest.raises(WeightsError, match="no longer") as caught:
            await it.swapper.swap(it.b)
        assert not caught.value.restored


@pytest.mark.slow
async def test_a_checkpoint_that_changes_while_it_is_loaded(room):
    """What was declared is not what was loaded: taken back."""
    async with room([{"fault": "hang", "path": RELOAD, "seconds": 0.5, "nth": [1]}]) as it:
        before = await it.text()
        swap = asyncio.create_task(it.refused())
        await asyncio.sleep(0.25)
        write_checkpoint(it.b, seed=9)
        error = await swap
        assert (error.kind, error.restored) == ("changed", True)
        assert await it.text() == before


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["drain", "abort"])
async def test_requests_in_flight(room, in_flight: InFlight):
    """Drained, they end with the old weights; given up, they are asked again of the new ones.

    Those that come during the swap wait for the new ones. Nobody gets an error.
    """
    async with room(latency=0.01) as it:
        under_way = [asyncio.create_task(it.ask(f"{n}", tokens=100)) for n in range(8)]
        await until(lambda: it.sampler.in_flight == 8)
        await asyncio.sleep(0.1)
        swap = asyncio.create_task(it.swapper.swap(it.b, in_flight=in_flight))
        await asyncio.sleep(0.1)
        late = await it.ask()
        done = await swap
        answers = await asyncio.gather(*under_way)
        expected = it.a if in_flight == "drain" else it.b
        assert {answer.weights_digest for answer in answers} == {it.digest(expected)}
        assert all(answer.completion_tokens == 100 for answer in answers)
        assert late.weights_digest == it.digest(it.b)
        assert (done.draining > 0.5) == (in_flight == "drain")


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["drain", "abort"])
async def test_requests_of_others_in_flight(room, in_flight: InFlight):
    """The server itself lets them end, or gives them up; what they send meanwhile waits there."""
    body = {"prompt": "x", "max_tokens": 100, "ignore_eos": True, "temperature": 0}
    async with room(latency=0.01) as it:
        old = await it.post("/v1/completions", body)
        theirs = asyncio.create_task(it.post("/v1/completions", body))
        await asyncio.sleep(0.2)
        swap = asyncio.create_task(it.swapper.swap(it.b, in_flight=in_flight))
        await asyncio.sleep(0.1)
        late = await it.post("/v1/completions", body)
        await swap
        reason = (await theirs)["choices"][0]["finish_reason"]
        assert reason == ("length" if in_flight == "drain" else "abort")
        assert late["choices"][0]["text"] != old["choices"][0]["text"]


@pytest.mark.slow
async def test_a_drain_that_takes_too_long_changes_nothing(room):
    """The request that lasts is answered; the next ones, too."""
    async with room(latency=0.02) as it:
        under_way = asyncio.create_task(it.ask(tokens=100))
        await until(lambda: it.sampler.in_flight)
        error = await it.refused(deadline=0.2)
        assert (error.kind, error.restored) == ("deadline", True)
        assert "the end of the requests in flight" in error.why
        assert (await it.ask()).weights_digest == it.digest(it.a)
        assert (await under_way).completion_tokens == 100
        assert await it.name() == "default"


@pytest.mark.slow
async def test_one_swap_at_a_time(room):
    """In this process and in others; the second is told so at once and does no harm."""
    async with room([{"fault": "hang", "path": RELOAD, "seconds": 0.4}]) as it:
        other = WeightSwapper(
            server_at(it.url, model=str(it.a)),
            engine=ENGINE,
            started=Weights(path=it.a, digest=it.digest(it.a)),
            file=it.file,
            layout=it.layout,
        )
        async with other:
            swap = asyncio.create_task(it.swapper.swap(it.b))
            await asyncio.sleep(0.1)
            for second in (it.swapper, other):
                with pytest.raises(WeightsError, match="another caller") as caught:
                    await second.swap(it.a)
                assert caught.value.kind == "taken"
            assert (await swap).after.path == it.b
            assert other.current.path == it.b
            assert (await other.swap(it.a)).after.version == 2


@pytest.mark.slow
async def test_the_right_to_swap_can_be_kept(room):
    """Whoever serves for its own evaluation does: no other process changes its weights."""
    async with room(alone=True) as it:
        other = WeightSwapper(
            server_at(it.url, model=str(it.a)),
            engine=ENGINE,
            started=Weights(path=it.a, digest=it.digest(it.a)),
            file=it.file,
            layout=it.layout,
        )
        async with other:
            with pytest.raises(WeightsError, match="process"):
                await other.swap(it.b)
        assert (await it.swapper.swap(it.b)).after.path == it.b
        assert (await it.swapper.swap(it.a)).after.path == it.a


@pytest.mark.slow
async def test_cancelled_in_the_middle(room):
    """Ctrl-C takes it back, too, before it ends."""
    async with room([{"fault": "hang", "path": RELOAD, "nth": [1]}]) as it:
        before = await it.text()
        swap = asyncio.create_task(it.swapper.swap(it.b))
        await asyncio.sleep(0.3)
        swap.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swap
        assert it.swapper.current.path == it.a
        assert await it.text() == before


@pytest.mark.slow
async def test_cancelled_again_while_it_is_taken_back(room):
    """An impatient second Ctrl-C does not leave the server paused, with half of the weights."""
    async with room([{"fault": "hang", "path": RELOAD, "seconds": 0.5, "nth": [1, 2]}]) as it:
        before = await it.text()
        swap = asyncio.create_task(it.swapper.swap(it.b))
        for _ in range(3):
            await asyncio.sleep(0.15)
            swap.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swap
        async with asyncio.timeout(5):
            assert await it.text() == before


async def test_a_restart_is_put_right(room):
    """A server that was started again has its first weights, until the declared are restored."""
    async with room() as it:
        first = await it.text()
        await it.swapper.restore()  # nothing was swapped: nothing to do
        assert await it.name() == "default"
        await it.swapper.swap(it.b)
        second = await it.text()
        await it.post(RELOAD, {"method": "reload_weights", "kwargs": {}})
        await it.post("/update_weight_version", {"new_version": "default"})
        assert await it.text() == first
        await it.swapper.restore()
        assert await it.text() == second
        assert await it.name() == it.swapper.current.name
        shutil.rmtree(it.b)
        with pytest.raises(WeightsError, match=re.escape(str(it.b))) as caught:
            await it.swapper.restore()
        assert not caught.value.restored


async def test_a_started_checkpoint_that_was_overwritten_is_no_restart(room):
    """The server would come back with other weights than its samples say."""
    async with room() as it:
        write_checkpoint(it.a, seed=5)
        with pytest.raises(WeightsError) as caught:
            await it.swapper.restore()
        assert "no longer holds" in caught.value.why


async def test_no_development_endpoints(room):
    """The server is left alone, and the error says what to do."""
    async with room(env={"VLLM_SERVER_DEV_MODE": "0"}) as it:
        with pytest.raises(WeightsError, match="not swapped") as caught:
            await it.swapper.swap(it.b)
        assert (caught.value.kind, caught.value.restored) == ("unsupported", True)
        assert "--enable-weight-swap" in caught.value.fix
        assert await it.text()


def test_an_engine_that_cannot(tmp_path, layout):
    """Said at once."""
    with pytest.raises(UnsupportedError, match="hf server") as caught:
        WeightSwapper(
            server_at("http://127.0.0.1:1", model="m"),
            engine=HfEngine(),
            started=Weights(path=tmp_path, digest="d"),
            file=tmp_path / "weights.json",
            layout=layout,
        )
    assert "(vllm)" in str(caught.value.fix)
