"""The fake harness passes the conformance suite; one that breaks a promise does not."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enginehouse.core.sampler import Capabilities
from enginehouse.harnesses.base import HarnessEndpoint, HarnessResult
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.testing.check_harness import CASES, Subject, check_harness
from enginehouse.testing.fake_engine import running_fake_engine
from enginehouse.testing.fake_harness import FakeHarness

ENVIRONMENT = EngineEnvironment(
    engine="fake", version="1.0", variant="any", executable=Path(sys.executable), key=None, flags={}
)


@pytest.fixture
async def subject(tmp_path: Path) -> AsyncIterator[Subject]:
    """The fake, and a fake engine that it asks."""
    async with running_fake_engine() as engine:
        yield Subject(
            harness=FakeHarness(),
            environment=ENVIRONMENT,
            endpoint=HarnessEndpoint(
                url=engine.url,
                api_key="",
                model="fake-model",
                tokenizer=None,
                chat=True,
                capabilities=Capabilities(supports=frozenset()),
                concurrency=2,
            ),
            task="sums",
            folder=tmp_path,
        )


@pytest.mark.slow
async def test_the_fake_passes(subject: Subject):
    """Every case."""
    assert len(CASES) >= 7
    assert await check_harness(subject) == []


class _Careless(FakeHarness):
    """Loses a sample, and counts another one as correct."""

    async def run(self, tasks: Sequence[str], **how: Any) -> Sequence[HarnessResult]:
        results = await super().run(tasks, **how)
        return [msgspec.structs.replace(r, samples=list(r.samples)[1:]) for r in results]


async def test_broken_promises_are_found(subject: Subject):
    """And each is named with its promise."""
    subject.harness = _Careless()
    failures = await check_harness(subject, only={"samples_are_complete", "unknown_task"})
    assert [failure.name for failure in failures] == ["samples_are_complete"]
    assert "As many items as the limit says" in failures[0].detail
