"""Who answers for which weights, and the second engine's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from enginehouse.core.errors import StartError, TinkerError
from enginehouse.testing.fake_sampling import FakeSampling
from enginehouse.testing.sampling_cases import BASE
from enginehouse.tinker.sampling.base import TokenPrompt, Weights
from enginehouse.tinker.sampling.output_layer import OutputLayer
from enginehouse.tinker.sampling.paired import paired_sampling

BODY = Weights(key="body", folder=Path("body"))
WHOLE = Weights(key="whole", folder=Path("whole"), unembed=True)
PROMPT = TokenPrompt(tokens=np.array([65, 66], np.int32), max_tokens=2)
SCORED = TokenPrompt(tokens=np.array([65, 66], np.int32), max_tokens=1, prompt_logprobs_from=1)
OPENAI = {"model": "any", "prompt": "ab", "max_tokens": 2}


class Second:
    """Opens fakes, and counts."""

    def __init__(self) -> None:
        self.engine = FakeSampling()
        self.opened = self.closed = 0
        self.failures: list[Exception] = []
        self.begun = asyncio.Event()
        self.ready = asyncio.Event()
        self.ready.set()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[FakeSampling]:
        """As open_sampling."""
        self.opened += 1
        self.begun.set()
        try:
            await self.ready.wait()
            if self.failures:
                raise self.failures.pop()
            yield self.engine
        finally:
            self.closed += 1


def _layer(*, answers: bool, prompts: bool) -> OutputLayer:
    return OutputLayer(answers=answers, prompts=prompts, why="it was tried")


@pytest.mark.parametrize(
    ("layer", "second_for"),
    [
        (_layer(answers=True, prompts=True), set()),
        (_layer(answers=True, prompts=False), {"scores", "openai scores"}),
        (_layer(answers=False, prompts=False), {"answers", "scores", "openai", "openai scores"}),
    ],
)
async def test_who_answers_for_adapters_of_the_output_layer(layer, second_for):
    """The main engine wherever it applies them wholly; the second one is started only then."""
    main, second, told = FakeSampling(), Second(), []
    async with paired_sampling(
        main, second, second="second", output_layer=layer, notify=told.append
    ) as engine:
        asked = {
            "answers": lambda: engine.sample(WHOLE, PROMPT),
            "scores": lambda: engine.sample(WHOLE, SCORED),
            "openai": lambda: engine.complete(WHOLE, "/v1/completions", OPENAI),
            "openai scores": lambda: engine.complete(
                WHOLE, "/v1/completions", OPENAI | {"prompt_logprobs": 0}
            ),
        }
        for name, ask in asked.items():
            before = second.engine.requests
            await ask()
            assert (second.engine.requests > before) == (name in second_for), name
        described = engine.description
    assert described["unembedding"] == {
        "answered_by": "second" if "answers" in second_for else "fake",
        "prompts_scored_by": "second" if "scores" in second_for else "fake",
        "why": "it was tried",
    }
    assert ("second" in described) == bool(second_for)
    assert second.opened == second.closed == len(told) == bool(second_for)
    assert all("starting second beside fake" in line for line in told)


async def test_everything_else_is_the_main_engines():
    """Also when the second one runs."""
    main, second = FakeSampling(), Second()
    layer = _layer(answers=False, prompts=False)
    async with paired_sampling(
        main, second, second="second", output_layer=layer, notify=print
    ) as engine:
        await engine.prepare(WHOLE)
        await engine.prepare(BODY)
        assert (main.loads, second.engine.loads) == ([BODY.key], [WHOLE.key])
        for weights in (BASE, BODY):
            await engine.sample(weights, SCORED)
        assert (main.requests, second.engine.requests) == (2, 0)
        pieces = [piece async for piece in await engine.stream(WHOLE, "/v1/completions", OPENAI)]
        assert pieces[-1] == b"data: [DONE]\n\n"
        await engine.forget(WHOLE)
        assert second.engine.description["adapters"] == []


async def test_a_caller_who_leaves_does_not_stop_the_start():
    """The others who wait get the engine, which is started once."""
    second = Second()
    second.ready.clear()
    layer = _layer(answers=False, prompts=False)
    async with paired_sampling(
        FakeSampling(), second, second="second", output_layer=layer, notify=print
    ) as engine:
        leaving, staying = (asyncio.create_task(engine.sample(WHOLE, PROMPT)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        second.ready.set()
        assert len((await staying).sequences) == 1
        assert second.opened == 1


async def test_a_start_that_fails_is_tried_again():
    """Who waited is told; the next one who asks has another try."""
    second = Second()
    second.failures.append(StartError("no memory"))
    layer = _layer(answers=False, prompts=False)
    async with paired_sampling(
        FakeSampling(), second, second="second", output_layer=layer, notify=print
    ) as engine:
        with pytest.raises(TinkerError, match="no memory") as caught:
            await engine.sample(WHOLE, PROMPT)
        assert caught.value.category == "server"
        assert len((await engine.sample(WHOLE, PROMPT)).sequences) == 1


async def test_it_ends_while_the_second_engine_starts():
    """Nothing is left, and who waits is not answered."""
    second = Second()
    second.ready.clear()
    layer = _layer(answers=False, prompts=False)
    async with paired_sampling(
        FakeSampling(), second, second="second", output_layer=layer, notify=print
    ) as engine:
        waiting = asyncio.create_task(engine.sample(WHOLE, PROMPT))
        await second.begun.wait()
    assert second.closed == 1
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
