from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse.core.errors import ServerGoneError
from enginehouse.testing.fake_sampling import END, FakeSampling, text_of
from enginehouse.testing.sampling_cases import BASE, CASES, Subject
from enginehouse.tinker.sampling.base import LogprobScale, TokenPrompt, Weights

FIRST = Weights(key="tinker://one/sampler_weights/a", folder=Path("one"))
SECOND = Weights(key="tinker://two/sampler_weights/a", folder=Path("two"))


def _prompt(text: str = "A mine", **fields: Any) -> TokenPrompt:
    return TokenPrompt(tokens=np.array([ord(letter) for letter in text], np.int32), **fields)


def _subject(logprobs: LogprobScale) -> Subject:
    return Subject(
        engine=FakeSampling(max_length=64, logprobs=logprobs),
        tokens=_prompt("A mine").tokens,
        ending=_prompt("Engine 14").tokens,
        end=END,
        text="Once",
        text_of=text_of,
        adapters=(FIRST, SECOND),
        logprobs=logprobs,
        tolerance=1e-5,
    )


@pytest.mark.parametrize("logprobs", ["raw", "scaled"])
@pytest.mark.parametrize("name", CASES)
async def test_keeps_every_promise(name: str, logprobs: LogprobScale) -> None:
    """As the real engines do."""
    await CASES[name](_subject(logprobs))


async def test_failures_are_raised_one_each() -> None:
    """The next request is answered again."""
    fake = FakeSampling()
    fake.failures.append(ServerGoneError("gone"))
    with pytest.raises(ServerGoneError):
        await fake.sample(BASE, _prompt(max_tokens=1))
    assert len((await fake.sample(BASE, _prompt(max_tokens=1))).sequences) == 1


async def test_requests_wait_while_it_does_not_run() -> None:
    """They are answered once it runs again."""
    fake = FakeSampling()
    fake.running.clear()
    waiting = asyncio.create_task(fake.sample(BASE, _prompt(max_tokens=1)))
    await asyncio.sleep(0)
    assert not waiting.done()
    fake.running.set()
    assert len((await waiting).sequences) == 1


async def test_the_least_recently_used_adapter_makes_room() -> None:
    """It is loaded again when it is asked for."""
    fake = FakeSampling(max_loras=1)
    for weights in (FIRST, SECOND, FIRST, FIRST):
        await fake.sample(weights, _prompt(max_tokens=1))
    assert fake.loads == [FIRST.key, SECOND.key, FIRST.key]
    assert fake.description["adapters"] == [FIRST.key]
