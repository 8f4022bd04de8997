"""The real hf server with SmolLM2: conformance, adapters, clients that go away, refusals."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec
import pytest
from tests.support import SUPPORT
from tests.support.command_line import House, port_is_free

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import BadRequestError, UnknownModelError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.engines.hf.engine import HfEngine
from enginehouse.processes.tree import identify
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.testing.check_engine import CASES, check

pytestmark = pytest.mark.engine
ENGINE = HfEngine()


class Served(NamedTuple):
    """A running server: its URL, its administrative key, its interpreter and its checkpoint."""

    url: str
    admin_key: str
    python: str
    checkpoint: str


@pytest.fixture(scope="module")
def served(house: House, hf_environment: EngineEnvironment) -> Iterator[Served]:
    """`enginehouse serve smollm2 --engine hf --detach`, then `enginehouse stop`.

    In float32: the same question may be answered otherwise in a batch when it is rounded more.
    """
    del hf_environment  # built before the server's start is waited for
    begun = house.run(
        *("serve", "smollm2", "--engine", "hf", "--detach", "--name", "plain"),
        *("--enable-lora", "--max-model-len", "2048", "--max-num-seqs", "16"),
        *("--dtype", "float32"),
    )
    assert begun.code == 0, begun.err
    (server,) = house.run("ps", "--json").report
    command = server["record"]["command"]
    url = server["record"]["base_url"]
    admin_key = (house.home / "state/servers/plain/admin.key").read_text()
    yield Served(url, admin_key, command[0], command[command.index("--model") + 1])
    stopped = house.run("stop", "plain")
    assert stopped.code == 0, stopped.err
    assert [pid for pid in server["pids"] if identify(pid)] == []
    assert port_is_free(url)


@pytest.fixture(scope="module")
def adapters(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters for SmolLM2, of ranks 4 and 8."""
    folder = tmp_path_factory.mktemp("adapters")
    made = {}
    for rank in ("4", "8"):
        made[f"rank{rank}"] = folder / rank
        program = [served.python, SUPPORT / "make_adapter.py", served.checkpoint]
        subprocess.run([*program, folder / rank, rank], check=True, capture_output=True)
    return made


def sampler_of(served: Served) -> HTTPSampler:
    """What asks the server; not entered yet."""
    return HTTPSampler(
        served.url,
        admin_key=served.admin_key,
        capabilities=ENGINE.capabilities(None),
        wire=ENGINE.wire,
    )


def request(text: str = "The capital of France is", **parameters: object) -> SampleRequest:
    """A text to continue with 8 tokens."""
    return SampleRequest(
        prompt=TextPrompt(text), parameters=SamplingParameters(**{"max_tokens": 8} | parameters)
    )


async def test_conformance(served: Served, adapters: dict[str, Path]):
    """Every declared capability keeps its promises; native tools are the one it lacks."""
    async with sampler_of(served) as sampler:
        await sampler.load_adapter("conforming", path=str(adapters["rank4"]))
        results = await check(sampler, adapter="conforming")
        await sampler.unload_adapter("conforming")
    assert {r.name: r.detail for r in results if r.outcome == "failed"} == {}
    skipped = {r.name for r in results if r.outcome == "skipped"}
    assert skipped == {"tool_call"}
    assert len(results) == len(CASES)


async def test_one_batch_answers_for_several_adapters(served: Served, adapters: dict[str, Path]):
    """Mixed requests get what each model says alone; the last one unloaded, the base is itself."""
    async with sampler_of(served) as sampler:

        async def ask(model: str | None) -> str:
            asked = msgspec.structs.replace(request(), model=model)
            return (await sampler.sample(asked)).completions[0].text

        before = await ask(None)
        for name, path in adapters.items():
            await sampler.load_adapter(name, path=str(path))
        models = [None, *adapters]
        alone = [await ask(model) for model in models]
        assert alone[0] == before
        assert len(set(alone)) == 3
        assert await asyncio.gather(*map(ask, models * 4)) == alone * 4
        with pytest.raises(BadRequestError, match="already been loaded"):
            await sampler.load_adapter("rank4", path=str(adapters["rank4"]))
        for name in adapters:
            await sampler.unload_adapter(name)
            with pytest.raises(UnknownModelError):
                await ask(name)
        assert await ask(None) == before


async def test_adapters_that_cannot_be_loaded(served: Served, tmp_path: Path):
    """Each is refused with the reason, and the server goes on."""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4096}')
    async with sampler_of(served) as sampler:
        with pytest.raises(BadRequestError, match="No adapter found"):
            await sampler.load_adapter("nowhere", path="/nowhere")
        with pytest.raises(BadRequestError, match="rank 4096"):
            await sampler.load_adapter("huge", path=str(tmp_path))
        with pytest.raises(BadRequestError, match="cannot be found"):
            await sampler.unload_adapter("never-loaded")
        assert (await sampler.sample(request())).completion_tokens == 8


async def test_requests_of_every_kind_at_once(served: Served):
    """32 requests for 16 places: constraints, seeds, stops and scores share the batch."""
    digits = StructuredOutput(regex="[0-9]{3}-[0-9]{4}")
    kinds = [
        request(structured=digits, max_tokens=20),
        request(temperature=1.0, seed=1),
        request(stop=(" is",), max_tokens=30),
        request(prompt_logprobs=0, max_tokens=1),
    ]
    async with sampler_of(served) as sampler:
        alone = [await sampler.sample(asked) for asked in kinds]
        together = await asyncio.gather(*map(sampler.sample, kinds * 8))
    for place, response in enumerate(together):
        text = response.completions[0].text
        wanted = alone[place % 4]
        if place % 4 == 0:
            assert len(text) == 8
            assert text.replace("-", "").isdigit()
        if place % 4 == 3:
            assert response.prompt_logprobs is not None
            assert wanted.prompt_logprobs is not None
            pairs = zip(response.prompt_logprobs[1:], wanted.prompt_logprobs[1:], strict=True)
            assert all(abs(one.logprob - other.logprob) < 0.3 for one, other in pairs)


async def test_a_client_that_goes_away_frees_its_place(served: Served):
    """Its row leaves the batch at once, long before its 1,900 tokens."""
    async with aiohttp.ClientSession(served.url) as session, sampler_of(served) as sampler:

        async def running() -> int:
            async with session.get(ENGINE.load_signal.path) as reply:
                load = ENGINE.load_signal.parse(await reply.text())
            assert load is not None
            return load.running

        async def reach(wanted: int) -> None:
            async with asyncio.timeout(60):
                while await running() != wanted:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.02)

        going = asyncio.create_task(sampler.sample(request("x", max_tokens=1900, ignore_eos=True)))
        await reach(1)
        going.cancel()
        await reach(0)
        stream = sampler.stream(request("x", max_tokens=1900, ignore_eos=True))
        await anext(stream)
        assert await running() == 1
        await stream.aclose()
        await reach(0)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/completions", {"prompt": "x", "guided_json": {}}, 400, "guided_json"),
        ("/v1/completions", {"prompt": [999999]}, 400, "vocabulary"),
        (
            "/v1/completions",
            {"prompt": "x", "min_tokens": 1, "stop_token_ids": [999999]},
            400,
            "vocabulary",
        ),
        ("/v1/completions", {"prompt": []}, 400, "prompt"),
        ("/v1/completions", {"prompt": [1] * 3000}, 400, "maximum context length"),
        ("/v1/completions", {"prompt": "x", "structured_outputs": {"regex": "(("}}, 400, "regex"),
        (
            "/v1/completions",
            {"prompt": "x", "structured_outputs": {"grammar": "root ::="}},
            400,
            "grammar",
        ),
        (
            "/v1/completions",
            {"prompt": "x", "structured_outputs": {"json": {"type": "nonsense"}}},
            400,
            "json",
        ),
        ("/v1/chat/completions", {"messages": "hi"}, 400, "messages"),
        ("/v1/nothing", {}, 404, "/v1/nothing"),
    ],
)
async def test_refusals_have_openais_shape(
    served: Served, path: str, body: dict[str, object], status: int, said: str
):
    """A status, and an error object whose message names what is wrong."""
    async with aiohttp.ClientSession(served.url) as session, session.post(path, json=body) as reply:
        assert reply.status == status
        error = (await reply.json())["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert said in error["message"]


async def test_a_body_that_is_no_json(served: Served):
    """400, as for any other wrong body."""
    async with (
        aiohttp.ClientSession(served.url) as session,
        session.post("/v1/completions", data=b"{") as reply,
    ):
        assert reply.status == 400
        assert "JSON" in (await reply.json())["error"]["message"]


async def test_the_api_key_guards_everything_but_health(house: House):
    """Without it 401, metrics included; SIGTERM then ends it without a failure."""
    house.env["ENGINEHOUSE_API_KEY"] = "s3cret"
    try:
        begun = house.run("serve", "smollm2", "--engine", "hf", "--detach", "--name", "guarded")
        assert begun.code == 0, begun.err
        (server,) = (
            s for s in house.run("ps", "--json").report if s["record"]["name"] == "guarded"
        )
        async with aiohttp.ClientSession(server["record"]["base_url"]) as session:
            for key, status in (("", 401), ("wrong", 401), ("s3cret", 200)):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                for path in ("/v1/models", "/metrics", "/version"):
                    async with session.get(path, headers=headers) as reply:
                        assert reply.status == status
                async with session.post("/v1/load_lora_adapter", headers=headers) as reply:
                    assert reply.status == 401
            async with session.get("/health") as reply:
                assert reply.status == 200
        assert "s3cret" not in " ".join(server["record"]["command"])
    finally:
        assert house.run("stop", "guarded").code == 0
        del house.env["ENGINEHOUSE_API_KEY"]
