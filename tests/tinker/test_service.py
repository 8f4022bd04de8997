"""The life of the whole service: one per home, drained at its end, and continued by the next."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.tinker_client import (
    MODEL,
    PROTOBUF,
    Client,
    House,
    RefusedError,
    loss_request,
    tokens_of,
    until,
)

from enginehouse.core.errors import ConfigurationError, StoreError
from enginehouse.runtime.context import Context
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.records.entries import SessionRecord
from enginehouse.tinker.service import is_abandoned
from enginehouse.tinker.stores import open_stores

TOKENS = list(range(20, 40))


async def test_two_services_cannot_have_the_same_home(tmp_path: Path):
    """The second is refused before it touches anything; after the first, it may."""
    house = House(tmp_path)
    async with house.open():
        with pytest.raises(ConfigurationError, match="another Tinker"):
            async with House(tmp_path, keys=house.keys).open():
                pass
    async with house.open():
        pass


async def test_a_drain_finishes_what_runs_and_refuses_what_is_new(tmp_path: Path):
    """Clients that wait are answered; what would begin is told to try again."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        sampler = await ada.sampler()
        model = await ada.create_model()
        house.engine.running.clear()
        asked = await ada.ask_sample(sampler, [65])
        body = loss_request(model, 1, TOKENS)
        job = await ada.post("forward_backward", body, **PROTOBUF)
        await until(lambda: house.engine.requests == 1)
        drained = asyncio.create_task(running.service.drain(30))
        await until(lambda: running.service.application.draining)
        for refused in (
            ada.ask_sample(sampler, [65]),
            ada.post("forward_backward", loss_request(model, 2, TOKENS), **PROTOBUF),
            ada.post("/v1/completions", {"model": "m", "prompt": "a"}),
        ):
            with pytest.raises(RefusedError) as error:
                await refused
            assert error.value.status == 503
        waiting = asyncio.create_task(ada.result(asked["request_id"]))
        house.engine.running.set()
        assert tokens_of(await waiting)
        assert await ada.result(job["request_id"])
        await drained


@pytest.mark.slow
async def test_what_a_drain_leaves_is_done_by_the_next_service(tmp_path: Path):
    """Samples that did not end in time, and jobs whose turn had not come."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        sampler = await ada.sampler()
        model = await ada.create_model()
        house.engine.running.clear()
        sample = await ada.ask_sample(sampler, [65])
        job = await ada.post("forward_backward", loss_request(model, 2, TOKENS), **PROTOBUF)
        await running.service.drain(0.05)
    house.engine.running.set()
    async with house.open() as running:
        ada._web = running.web
        assert tokens_of(await ada.result(sample["request_id"]))
        first = await ada.compute(model, 1, TOKENS)
        assert first["loss:sum"] > 0
        await ada.result(job["request_id"])


async def test_a_poll_that_is_held_is_answered_when_the_service_stops(tmp_path: Path):
    """At once, so that nothing has to be cut off."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        sampler = await ada.sampler()
        house.engine.running.clear()
        asked = await ada.ask_sample(sampler, [65])
        body = {"request_id": asked["request_id"]}
        poll = asyncio.create_task(ada.post("retrieve_future", body))
        await until(lambda: running.service.status().polls == 1)
        await running.service.drain(0.01)
        assert (await poll)["type"] == "try_again"


@pytest.mark.slow
async def test_four_users_do_not_get_in_each_others_way(tmp_path: Path):
    """Each one's losses are those of a run alone."""

    async def losses(client: Client, tokens: list[int]) -> list[float]:
        await client.begin()
        model = await client.create_model()
        result = []
        for step in range(3):
            result.append((await client.compute(model, 2 * step + 1, tokens))["loss:sum"])
            await client.step(model, 2 * step + 2)
        return result

    data = [list(range(start, start + 12)) for start in (10, 40, 70, 100)]
    names = ("ada", "bob", "eve", "ada")
    async with House(tmp_path / "together").open() as running:
        together = await asyncio.gather(
            *(losses(running.client(name), d) for name, d in zip(names, data, strict=True))
        )
    for number, (tokens, expected) in enumerate(zip(data, together, strict=True)):
        async with House(tmp_path / str(number)).open() as running:
            assert await losses(running.client(), tokens) == pytest.approx(expected, rel=1e-9)


async def test_a_session_is_not_abandoned_because_the_service_was_down(tmp_path: Path):
    """Its client could not be heard; only a day of silence while the service runs counts."""
    now = datetime.now(UTC)
    long_ago = now - timedelta(days=3)
    async with House(tmp_path).open() as running:
        records = running.stores.records
        await records.add_session(
            SessionRecord(session_id="ses-1", user="ada", created=long_ago, last_heartbeat=long_ago)
        )
        assert not await is_abandoned("ses-1", records, began=now)
        assert await is_abandoned("ses-1", records, began=now - timedelta(days=2))
        assert await is_abandoned("ses-never", records, began=now)


async def test_the_log_names_the_request_and_its_user(tmp_path: Path):
    """One JSON object per line, in the home."""
    async with House(tmp_path).open() as running:
        await running.client().begin()
    lines = [json.loads(line) for line in (tmp_path / "service.jsonl").read_text().splitlines()]
    (created,) = [line for line in lines if line.get("path") == "/api/v1/create_session"]
    assert (created["user"], created["status"]) == ("ada", 200)
    assert len(created["request_id"]) == 32


async def test_a_home_has_adapters_of_one_base_model(tmp_path: Path):
    """Those of another might fit, and would be sampled and trained on the wrong weights."""
    other = TinkerConfig(base_model="org/other", home=tmp_path)
    async with open_stores(other, Context()):
        pass  # of which nothing came: its model may not exist
    house = House(tmp_path)
    for _ in range(2):
        async with house.open():
            pass
    with pytest.raises(ConfigurationError, match=f"{MODEL}.* org/other"):
        async with open_stores(other, Context()):
            pass


async def test_a_home_that_is_a_file_is_refused_with_what_to_do(tmp_path: Path):
    """Before anything else."""
    file = tmp_path / "file"
    file.write_text("")
    house = House(file, keys={"ada": "tml-x"})
    with pytest.raises(StoreError, match=re.escape(str(file))):
        async with house.open():
            pass


async def test_a_queue_that_ends_with_an_error_ends_the_service(tmp_path: Path):
    """The operator must not have a service that only looks alive."""
    states = tmp_path / "models"
    states.write_text("a file in place of the folder of states")
    house = House(tmp_path, trainer=FakeTrainer())
    with pytest.raises(StoreError):
        async with house.open():
            await asyncio.sleep(30)


async def test_the_status_warns_of_snapshots_that_fill_the_disk(tmp_path: Path):
    """As what looks at the disk says."""
    async with House(tmp_path).open() as running:
        assert running.service.status().notices == ()
        running.stores.checkpoints.warning = "snapshots take 9 GB"
        assert running.service.status().notices == ("snapshots take 9 GB",)
