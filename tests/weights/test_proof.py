from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

import msgspec
import pytest
from tests.support.tiny_adapters import write_adapter

from enginehouse.core.errors import (
    AdapterError,
    MalformedResponseError,
    NoEffectError,
    UnsupportedError,
)
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    SampleRequest,
    SampleResponse,
    Timing,
    TokenLogprob,
)
from enginehouse.weights.peft_folder import read_peft_folder
from enginehouse.weights.proof import (
    TEXTS,
    measure_baseline,
    prove_beside_others,
    prove_effect,
)


class Scripted:
    """Gives every token of a model the next of that model's log-probabilities."""

    capabilities = Capabilities(supports=frozenset(Capability))

    def __init__(self, values: Mapping[str, list[float]]) -> None:
        self.values = {model: list(values) for model, values in values.items()}

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Two tokens for each text; each request takes one value."""
        await asyncio.sleep(0)
        assert request.model is not None
        assert request.parameters.prompt_logprobs == 0
        values = self.values[request.model]
        value = values.pop(0) if len(values) > 1 else values[0]
        token = TokenLogprob(logprob=value, text="x")
        return SampleResponse(
            completions=(Completion(text="", finish_reason="length"),),
            model=request.model,
            request_id="1",
            prompt_tokens=3,
            completion_tokens=1,
            timing=Timing(started=0.0, elapsed=0.0),
            prompt_logprobs=(None, token, token) if not math.isinf(value) else None,
        )


async def proved(base: list[float], adapted: list[float], **more: object):
    """The effect of one that answers so."""
    sampler = Scripted({"base": base, "mine": adapted})
    return await prove_effect(sampler, model="mine", base_model="base", **more)


async def test_an_effect_is_measured():
    """Largest and mean difference in nats, over all tokens but the first of each text."""
    effect = await proved([-1.0], [-1.5, -3.0])
    assert effect.largest_difference == 2.0
    assert effect.mean_difference == pytest.approx(1.25)
    assert effect.tokens == 2 * len(TEXTS)
    assert effect.noise == 0.0


async def test_a_small_effect_is_one_where_there_is_no_noise():
    """The first steps of a training change little."""
    assert (await proved([-1.0], [-1.0001])).mean_difference == pytest.approx(0.0001)


async def test_no_difference_names_the_prefix(tmp_path):
    """The engine found none of its modules: one is named."""
    info = read_peft_folder(write_adapter(tmp_path / "a"))
    with pytest.raises(AdapterError, match=r"exactly .*base") as caught:
        await proved([-1.0], [-1.0], info=info)
    assert "another prefix" in str(caught.value)
    assert "model.layers.0.self_attn.q_proj" in str(caught.value)


async def test_no_difference_of_one_that_is_zero(tmp_path):
    """Then the names are not to blame."""

    def zero(made):
        for name in made:
            if "lora_B" in name:
                made[name] *= 0

    info = read_peft_folder(write_adapter(tmp_path / "a", change=zero))
    with pytest.raises(AdapterError, match="no effect") as caught:
        await proved([-1.0], [-1.0], info=info)
    assert "before the first step" in str(caught.value)
    assert "prefix" not in str(caught.value)


async def test_noise_is_no_effect():
    """Where the base differs from itself as much, nothing is proved."""
    with pytest.raises(AdapterError, match="noise") as caught:
        await proved([-1.0, -1.0, -1.1, -1.1], [-1.15])
    assert "differ by 0.1" in str(caught.value)
    assert (await proved([-1.0, -1.0, -1.1, -1.1], [-1.5])).noise == pytest.approx(0.1)


async def test_no_numbers():
    """An overflow is an effect, and none that anybody wants."""
    with pytest.raises(AdapterError, match="not finite"):
        await proved([-1.0], [math.nan])


async def test_a_server_that_gives_none():
    """No log-probabilities prove nothing."""
    with pytest.raises(MalformedResponseError, match="mine"):
        await proved([-1.0], [math.inf])


async def test_other_errors_pass():
    """What the sampler refuses is not the adapter's doing."""

    class Refusing(Scripted):
        async def sample(self, request: SampleRequest) -> SampleResponse:
            raise UnsupportedError("no prompt_logprobs")

    with pytest.raises(UnsupportedError):
        await prove_effect(Refusing({}), model="mine", base_model="base")


class Candidates(Scripted):
    """Gives the next value to every candidate of the one token that is asked for.

    `suffix` is added to the candidates of all models but the base.
    """

    def __init__(self, values: Mapping[str, list[float]], *, suffix: str = "") -> None:
        super().__init__(values)
        self.suffix = suffix

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Two candidates."""
        assert request.parameters.prompt_logprobs is None
        assert request.parameters.max_tokens == 1
        parameters = msgspec.structs.replace(request.parameters, prompt_logprobs=0)
        response = await super().sample(msgspec.structs.replace(request, parameters=parameters))
        if response.prompt_logprobs is None:
            return response
        (_, token, _) = response.prompt_logprobs
        assert token is not None
        suffix = "" if request.model == "base" else self.suffix
        top = tuple(msgspec.structs.replace(token, text=text + suffix) for text in "xy")
        token = msgspec.structs.replace(token, top=top)
        made = Completion(text="x", finish_reason="length", logprobs=(token,))
        return msgspec.structs.replace(response, completions=(made,), prompt_logprobs=None)


class TestBesideOthers:
    """A proof that does not ask for log-probabilities of prompts."""

    async def proved(self, base: list[float], adapted: list[float], **how: str):
        """The effect of one that answers so."""
        sampler = Candidates({"base": base, "mine": adapted}, **how)
        baseline = await measure_baseline(sampler, "base")
        return await prove_beside_others(sampler, model="mine", baseline=baseline)

    async def test_an_effect_is_measured(self):
        """Over the candidates of one token."""
        effect = await self.proved([-1.0], [-3.0])
        assert effect.largest_difference == effect.mean_difference == 2.0
        assert effect.tokens == 2
        assert effect.noise == 0.0

    async def test_other_candidates_are_an_effect(self):
        """One that is missing is at least as unlikely as the least likely that is there."""
        assert (await self.proved([-1.0], [-3.0], suffix="'")).mean_difference == 2.0

    @pytest.mark.parametrize(
        ("base", "adapted"),
        [([-1.0], [-1.0]), ([-1.0], [-1.01]), ([-1.0, -1.1], [-1.15])],
    )
    async def test_what_the_rest_of_a_batch_may_have_changed_is_none(self, base, adapted):
        """Nothing, less than rounding, or no more than the base differs from itself."""
        with pytest.raises(NoEffectError, match="no effect"):
            await self.proved(base, adapted)

    async def test_no_numbers(self):
        """As for any proof."""
        with pytest.raises(AdapterError, match="not finite"):
            await self.proved([-1.0], [math.nan])
        with pytest.raises(MalformedResponseError, match="mine"):
            await self.proved([-1.0], [math.inf])
