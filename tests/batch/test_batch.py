"""Asking the prompts of a file: what becomes a line, and what ends the command."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.evaluation_fakes import FakeSampler

from enginehouse.batch.batch import Batch
from enginehouse.batch.prompt_files import PromptLine
from enginehouse.batch.sample_files import SampleLine, Source
from enginehouse.batch.settings import SampleSettings
from enginehouse.core.errors import (
    BadRequestError,
    ConnectionFailedError,
    ServerGoneError,
    UnauthorizedError,
    UnsupportedError,
)
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.results.summary import Progress

SOURCE = Source(model="tiny", engine="vllm", engine_version="1", weights="w" * 8)
SETTINGS = SampleSettings(prompts="in.jsonl", out="out.jsonl", concurrency=2)


class Listing(FakeSampler):
    """Lists its models, or fails to."""

    failure: Exception | None = None

    async def models(self) -> tuple[str, ...]:
        """One."""
        if self.failure:
            raise self.failure
        return ("tiny",)


class Lines:
    """Takes what would be written."""

    def __init__(self) -> None:
        self.written: list[SampleLine] = []

    def write(self, line: SampleLine) -> None:
        """Keep it."""
        self.written.append(line)


def prompts(number: int, **parameters: Any) -> list[PromptLine]:
    """So many, each with its number as text."""
    return [
        PromptLine(
            id=at,
            request=SampleRequest(
                prompt=TextPrompt(str(at)), parameters=SamplingParameters(**parameters)
            ),
            digest=f"d{at}",
        )
        for at in range(number)
    ]


async def test_a_failed_answer_is_a_line():
    """The others are answered; the summary counts what was there before, too."""
    lines, seen = Lines(), list[Progress]()
    failure = BadRequestError("too long", why="4 tokens", status=400)
    sampler = Listing(lambda r: failure if r.prompt.text == "1" else f"said {r.prompt.text}")
    batch = Batch(SETTINGS, lines, prompts=5, answered=2)
    await batch.ask(prompts(3), sampler, SOURCE, progress=seen.append)
    by_id = {line.id: line for line in lines.written}
    assert [by_id[at].texts for at in range(3)] == [("said 0",), (), ("said 2",)]
    assert by_id[1].error == "BadRequestError: too long: 4 tokens"
    assert {line.model for line in lines.written} == {"tiny"}
    summary = batch.summary()
    assert (summary.prompts, summary.answered, summary.failed, summary.asked) == (5, 4, 1, 3)
    assert (summary.completion_tokens, summary.example) == (4, by_id[1].error)
    assert sampler.most_in_flight == 2
    assert (seen[-1].tasks[0].done, seen[-1].tasks[0].total) == (5, 5)


async def test_fewer_answers_than_were_asked_for_are_a_failure():
    """Not a line with one answer less."""
    lines = Lines()
    batch = Batch(SETTINGS, lines, prompts=1, answered=0)
    asked = prompts(1, n=2, temperature=1.0)
    await batch.ask(asked, Listing(lambda _: "a"), SOURCE, progress=lambda _: None)
    assert lines.written[0].texts == ()
    assert str(lines.written[0].error).startswith("MalformedResponseError")


@pytest.mark.parametrize(
    "failure", [UnauthorizedError("no key", status=401), UnsupportedError("no chat")]
)
async def test_what_every_request_would_meet_ends_it(failure: Exception):
    """Nothing is written for it."""
    lines = Lines()
    batch = Batch(SETTINGS, lines, prompts=9, answered=0)
    with pytest.raises(type(failure)):
        await batch.ask(prompts(9), Listing(lambda _: failure), SOURCE, progress=lambda _: None)
    assert lines.written == []


async def test_a_lost_connection_asks_whether_the_server_is_there():
    """If it is, the answer failed; if not, the rest would fail in the same way."""
    lost = ConnectionFailedError("refused")
    there, gone = Listing(lambda _: lost), Listing(lambda _: lost)
    gone.failure = ConnectionFailedError("nothing listens")
    lines = Lines()
    batch = Batch(SETTINGS, lines, prompts=1, answered=0)
    await batch.ask(prompts(1), there, SOURCE, progress=lambda _: None)
    assert str(lines.written[0].error).startswith("ConnectionFailedError")
    with pytest.raises(ServerGoneError):
        await batch.ask(prompts(1), gone, SOURCE, progress=lambda _: None)
