"""Our client on the fakes of hosted APIs: limits, storms, errors within a 200, streams, keys."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import (
    BadRequestError,
    MalformedResponseError,
    NoCreditError,
    RateLimitedError,
    ServerFaultError,
    UnauthorizedError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt, Message, TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.engines.anthropic.engine import AnthropicEngine
from enginehouse.engines.base import RemoteEngine
from enginehouse.engines.megatron.engine import MegatronEngine
from enginehouse.engines.openai.engine import OpenAIEngine
from enginehouse.engines.openrouter.engine import OpenRouterEngine
from enginehouse.testing.fake_vendors import (
    FakeAnthropic,
    FakeMegatron,
    FakeOpenAI,
    FakeOpenRouter,
    Planned,
    Quota,
    running_fake_vendor,
)
from enginehouse.testing.fake_vendors.vendor import FakeVendor

HELLO = SampleRequest(prompt=ChatPrompt((Message("user", "Hello!"),)))
QUICK = Retries(base=0.001, cap=0.01)
HOSTED: list[tuple[RemoteEngine, type[FakeVendor]]] = [
    (OpenAIEngine(), FakeOpenAI),
    (AnthropicEngine(), FakeAnthropic),
    (OpenRouterEngine(), FakeOpenRouter),
]
IDS = ["openai", "anthropic", "openrouter"]
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def sampler_of(
    engine: RemoteEngine,
    vendor: FakeVendor,
    *,
    retries: Retries = QUICK,
    api_key: str = "fake-key",
    concurrency: int | None = None,
) -> HTTPSampler:
    """Our client."""
    return HTTPSampler(
        vendor.url,
        model="fake-model",
        capabilities=engine.capabilities(None),
        wire=engine.wire,
        api_key=api_key,
        retries=retries,
        concurrency=concurrency,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "fake"), HOSTED, ids=IDS)
async def test_with_headers_to_go_by_no_request_is_refused(
    engine: RemoteEngine, fake: type[FakeVendor]
):
    """Two requests a window: the third waits for the next, and none is sent too early."""
    quota = Quota(requests=2, window=0.3)
    async with (
        running_fake_vendor(fake(quota=quota)) as vendor,
        sampler_of(engine, vendor, concurrency=1) as sampler,
    ):
        answers = [await sampler.sample(HELLO) for _ in range(5)]
        assert [answer.timing.attempts for answer in answers] == [1] * 5
        first, _, third, _, fifth = vendor.times
    assert third - first >= 0.299
    assert fifth - third >= 0.299


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "fake"), HOSTED, ids=IDS)
async def test_a_storm_of_refusals_ends_in_success(engine: RemoteEngine, fake: type[FakeVendor]):
    """Twenty at once where four are let in at a time: all are answered."""
    async with (
        running_fake_vendor(fake(quota=Quota(requests=4, window=0.1))) as vendor,
        sampler_of(engine, vendor) as sampler,
    ):
        answers = await asyncio.gather(*(sampler.sample(HELLO) for _ in range(20)))
        assert len(vendor.requests) > 20
    assert all(answer.completions[0].text for answer in answers)


@pytest.mark.parametrize(("engine", "fake"), HOSTED, ids=IDS)
async def test_a_storm_without_an_end_is_a_clear_error(
    engine: RemoteEngine, fake: type[FakeVendor]
):
    """Soon after the endurance, for all that wait and for all that come, and not before."""
    quota = Quota(requests=0, window=0.02)
    retries = Retries(base=0.001, endurance=0.2)
    async with (
        running_fake_vendor(fake(quota=quota)) as vendor,
        sampler_of(engine, vendor, retries=retries) as sampler,
        asyncio.timeout(20),
    ):
        asked = (sampler.sample(HELLO) for _ in range(100))
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(error) for error in errors} == {RateLimitedError}
        assert "429" in str(errors[0])
        assert "--concurrency" in str(errors[0])
        sent = len(vendor.requests)
        with pytest.raises(RateLimitedError):
            await sampler.sample(HELLO)
        assert len(vendor.requests) == sent + 1


async def test_a_longer_wait_than_we_have_patience_for_is_an_error_at_once():
    """A day's quota that is used up."""
    plan = [Planned(status=429, body=b"{}", headers={"Retry-After": "86400"})]
    async with (
        running_fake_vendor(FakeOpenAI(plan=plan)) as vendor,
        sampler_of(OpenAIEngine(), vendor) as sampler,
    ):
        with pytest.raises(RateLimitedError) as caught:
            await sampler.sample(HELLO)
        assert caught.value.retry_after == 86400
        with pytest.raises(RateLimitedError, match="another 86,"):
            await sampler.sample(HELLO)
        assert len(vendor.requests) == 1


async def test_an_overloaded_anthropic_is_asked_again():
    """529, with and without a time."""
    plan = [
        Planned(status=529, body=OVERLOADED),
        Planned(status=529, body=OVERLOADED, headers={"retry-after-ms": "5"}),
    ]
    async with (
        running_fake_vendor(FakeAnthropic(plan=plan)) as vendor,
        sampler_of(AnthropicEngine(), vendor) as sampler,
    ):
        assert (await sampler.sample(HELLO)).timing.attempts == 3


@pytest.mark.parametrize("where", ["top", "choice"])
async def test_a_provider_s_error_within_a_200_is_asked_again(where: str):
    """OpenRouter had begun to answer when its provider failed."""
    error = {
        "code": 502,
        "message": "Provider returned error",
        "metadata": {"provider_name": "Acme", "raw": "upstream timeout"},
    }
    choice = {"index": 0, "message": {"content": ""}, "finish_reason": "error", "error": error}
    body = {"error": error} if where == "top" else {"id": "x", "choices": [choice]}
    async with (
        running_fake_vendor(FakeOpenRouter(plan=[Planned(body=body)])) as vendor,
        sampler_of(OpenRouterEngine(), vendor) as sampler,
    ):
        assert (await sampler.sample(HELLO)).timing.attempts == 2
        vendor.plan = [Planned(body=body)] * 100
        with pytest.raises(ServerFaultError, match="Provider returned error") as caught:
            await sampler.sample(HELLO)
    assert "Acme said: upstream timeout" in str(caught.value)


async def test_an_error_within_a_200_that_will_not_pass_is_not_asked_again():
    """The account ran dry in the meantime."""
    body = {"error": {"code": 402, "message": "Insufficient credits"}}
    async with (
        running_fake_vendor(FakeOpenRouter(plan=[Planned(body=body)])) as vendor,
        sampler_of(OpenRouterEngine(), vendor) as sampler,
    ):
        with pytest.raises(NoCreditError, match="402"):
            await sampler.sample(HELLO)
        assert len(vendor.requests) == 1


@pytest.mark.parametrize(
    ("engine", "fake", "event", "error"),
    [
        (
            OpenAIEngine(),
            FakeOpenAI,
            {"error": {"message": "The server had an error", "type": "server_error"}},
            ServerFaultError,
        ),
        (AnthropicEngine(), FakeAnthropic, OVERLOADED, RateLimitedError),
        (
            OpenRouterEngine(),
            FakeOpenRouter,
            {
                "id": "x",
                "error": {"code": "server_error", "message": "Provider disconnected"},
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            },
            ServerFaultError,
        ),
    ],
    ids=IDS,
)
async def test_an_error_in_the_middle_of_a_stream(
    engine: RemoteEngine, fake: type[FakeVendor], event: object, error: type[WireError]
):
    """What came before it was yielded; then it is raised."""
    plan = [Planned(body=event, after=4)]
    text = ""
    async with (
        running_fake_vendor(fake(plan=plan)) as vendor,
        sampler_of(engine, vendor) as sampler,
    ):
        with pytest.raises(error):  # noqa: PT012 (the loop is what raises)
            async for delta in sampler.stream(HELLO):
                text += delta.text
    assert text


async def test_a_stream_that_ends_early_is_not_taken_for_the_whole():
    """Without message_stop there is more to come."""
    plan = [Planned(body={"type": "ping"}, after=4)]
    async with (
        running_fake_vendor(FakeAnthropic(plan=plan)) as vendor,
        sampler_of(AnthropicEngine(), vendor) as sampler,
    ):
        with pytest.raises(MalformedResponseError, match="complete"):
            [delta async for delta in sampler.stream(HELLO)]


async def test_a_stream_waits_its_turn_like_any_request():
    """And counts as one."""
    async with (
        running_fake_vendor(FakeOpenAI(quota=Quota(requests=1, window=0.2))) as vendor,
        sampler_of(OpenAIEngine(), vendor) as sampler,
    ):
        for _ in range(3):
            assert [delta async for delta in sampler.stream(HELLO)]
        assert len(vendor.times) == 3
        assert all(after - before >= 0.199 for before, after in pairwise(vendor.times))


@pytest.mark.parametrize(("engine", "fake"), HOSTED, ids=IDS)
async def test_a_wrong_key_is_named_by_its_variable_and_never_shown(
    engine: RemoteEngine, fake: type[FakeVendor]
):
    """Even where the vendor quotes it."""
    canary = "sk-canary-4711"
    async with (
        running_fake_vendor(fake()) as vendor,
        sampler_of(engine, vendor, api_key=canary) as sampler,
    ):
        with pytest.raises(UnauthorizedError) as caught:
            await sampler.sample(HELLO)
    assert engine.key_variables[0] in str(caught.value)
    assert canary not in f"{caught.value!r} {caught.value} {caught.value.args}"


@pytest.mark.parametrize(("engine", "fake"), HOSTED, ids=IDS)
async def test_a_reply_that_is_none_does_not_show_the_key(
    engine: RemoteEngine, fake: type[FakeVendor]
):
    """A proxy that answers 200 with what it was sent."""
    page = b"<html>you sent sk-canary-4711</html>"
    async with (
        running_fake_vendor(fake(key="sk-canary-4711", plan=[Planned(body=page)])) as vendor,
        sampler_of(engine, vendor, api_key="sk-canary-4711") as sampler,
    ):
        with pytest.raises(MalformedResponseError) as caught:
            await sampler.sample(HELLO)
    assert "you sent ***" in str(caught.value)
    assert "canary" not in str(caught.value)


async def test_a_model_that_takes_no_temperature_says_what_to_give():
    """Temperature 1 is the API's own, and is not sent; nor is max_tokens to OpenAI."""
    warm = SamplingParameters(temperature=1.0)
    for engine, vendor in (
        (OpenAIEngine(), FakeOpenAI(models=("m",), reasoning=("fake-model",))),
        (AnthropicEngine(), FakeAnthropic(models=("m",), unsampled=("fake-model",))),
    ):
        async with running_fake_vendor(vendor), sampler_of(engine, vendor) as sampler:
            with pytest.raises(BadRequestError, match="temperature") as caught:
                await sampler.sample(HELLO)
            assert "--temperature 1" in str(caught.value)
            response = await sampler.sample(SampleRequest(prompt=HELLO.prompt, parameters=warm))
            assert response.completions[0].text


async def test_what_a_megatron_server_refuses_in_words_is_an_error():
    """With status 200, above all."""
    text = SampleRequest(prompt=TextPrompt("Once"))
    plan = [Planned(body="cannot set both top-k and top-p samplings.")]
    async with (
        running_fake_vendor(FakeMegatron(plan=plan)) as vendor,
        sampler_of(MegatronEngine(), vendor) as sampler,
    ):
        with pytest.raises(BadRequestError, match="cannot set both"):
            await sampler.sample(text)
        assert (await sampler.sample(text)).completions[0].text
