"""Requests are spread over instances, and none of them is lost or answered twice."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from tests.support.layers import WIRE, Below, exchange, settled

from enginehouse.client.admission import Admission
from enginehouse.client.exchange import Exchange, Reply
from enginehouse.client.redelivery import Redelivery
from enginehouse.client.spread import Branch, Instance, Instances, Spread
from enginehouse.client.stack import ServerLayers
from enginehouse.client.transport import WireRequest
from enginehouse.core.errors import (
    BadRequestError,
    EngineKilledError,
    ServerGoneError,
    UnsupportedError,
)
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest


class Cluster:
    """Instances whose engines answer with their own number when told."""

    def __init__(self, number: int) -> None:
        self.instances = Instances()
        self.below: dict[Instance, Below] = {}
        self.all: list[Instance] = []
        for _ in range(number):
            self.start()
        self.spread = Spread(self.instances, model="m", open_branch=self.branch)

    def start(self) -> Instance:
        """One more."""
        redelivery = Redelivery(admission=Admission(), patience=60.0)
        instance = Instance(
            "http://127.0.0.1:1",
            redelivery=redelivery,
            layers=ServerLayers(redelivery=redelivery),
            models=["m"],
        )
        redelivery.resume()
        self.below[instance] = Below(len(self.all))
        self.all.append(instance)
        self.instances.add(instance)
        return instance

    def branch(self, instance: Instance) -> Branch:
        """Redelivery, with the engine below it."""
        below = self.below[instance]

        async def send(asked: Exchange) -> Reply:
            return await instance.redelivery.send(asked, below)

        return Branch(send=send, send_directly=below)

    def ask(self, model: str | None = None, **options: bool) -> asyncio.Task[Reply]:
        """A request on its way."""
        sample = SampleRequest(prompt=TextPrompt("x"), model=model)
        return asyncio.create_task(self.spread.send(exchange(sample, **options)))

    def loads(self) -> list[int]:
        """Requests in flight at each."""
        return [instance.in_flight.total() for instance in self.all]


async def test_the_one_with_the_fewest_requests_is_chosen():
    """A slow one keeps what it has, and gets no more until the others have as much."""
    cluster = Cluster(3)
    first = [cluster.ask() for _ in range(6)]
    await settled()
    assert cluster.loads() == [2, 2, 2]
    for instance in cluster.all[1:]:
        cluster.below[instance].end.set()
    await settled()
    assert cluster.loads() == [2, 0, 0]
    answers = Counter([(await cluster.ask()).answer for _ in range(20)])
    assert answers == {1: 10, 2: 10}
    cluster.below[cluster.all[0]].end.set()
    await asyncio.gather(*first)
    assert cluster.loads() == [0, 0, 0]


async def test_what_a_dead_one_had_goes_to_the_others_at_once():
    """In flight or waiting; the dead one's next start is not waited for."""
    cluster = Cluster(3)
    tasks = [cluster.ask() for _ in range(9)]
    await settled()
    dead, *others = cluster.all
    assert dead.redelivery.interrupt("it died") == 3
    await settled()
    assert cluster.loads() in ([0, 5, 4], [0, 4, 5])
    for instance in others:
        cluster.below[instance].end.set()
    answers = [task.result().answer for task in tasks if await task]
    assert set(answers) == {1, 2}
    assert sum(len(below.attempts) for below in cluster.below.values()) == 9 + 3


async def test_they_wait_while_none_works():
    """For whichever is there first, a new one too."""
    cluster = Cluster(2)
    tasks = [cluster.ask() for _ in range(4)]
    await settled()
    for instance in cluster.all:
        instance.redelivery.interrupt("it died")
    tasks.append(cluster.ask())
    await settled()
    assert cluster.loads() == [0, 0]
    new = cluster.start()
    cluster.below[new].end.set()
    assert {reply.answer for reply in await asyncio.gather(*tasks)} == {2}


async def test_all_are_given_up():
    """One given up leaves its requests to the others; the last one's error is raised."""
    cluster = Cluster(2)
    tasks = [cluster.ask() for _ in range(2)]
    await settled()
    first, last = cluster.all
    first.redelivery.interrupt("it died")
    first.redelivery.close_for_good(ServerGoneError("first"))
    await settled()
    assert cluster.loads() == [0, 2]
    last.redelivery.interrupt("it died")
    await settled()
    assert not any(task.done() for task in tasks)
    last.redelivery.close_for_good(ServerGoneError("last"))
    for task in (*tasks, cluster.ask()):
        with pytest.raises(ServerGoneError, match="last"):
            await task


async def test_one_that_was_removed_wakes_nobody():
    """Nor does it keep what waits alive."""
    cluster = Cluster(1)
    (gone,) = cluster.all
    assert gone.redelivery.watchers
    cluster.instances.remove(gone)
    assert not gone.redelivery.watchers
    waiting = cluster.ask()
    gone.redelivery.resume()
    await settled()
    assert not waiting.done()
    cluster.below[cluster.start()].end.set()
    assert (await waiting).answer == 1


async def test_an_error_of_a_living_one_is_not_asked_again():
    """It is the request's own."""
    cluster = Cluster(2)
    below = cluster.below[cluster.all[0]]
    below.answer = BadRequestError("no")
    below.end.set()
    with pytest.raises(BadRequestError):
        await cluster.ask()
    assert cluster.loads() == [0, 0]
    assert not cluster.below[cluster.all[1]].attempts


async def test_a_stream_that_has_begun_stays_where_it_is():
    """It breaks off with its engine, and its place is held until it is closed."""
    cluster = Cluster(2)
    first, other = cluster.all
    cluster.below[first].end.set()
    reply = await cluster.ask(streamed=True)
    assert cluster.loads() == [1, 0]
    assert first.redelivery.interrupt("it died") == 1
    await settled()
    assert not cluster.below[other].attempts
    reply.close()
    assert cluster.loads() == [0, 0]


async def test_the_killer_of_engines_is_found_across_instances():
    """It kills two in company, then one alone; the company is answered."""
    cluster = Cluster(2)
    killer, friend = cluster.ask("killer"), cluster.ask("friend")
    await settled()
    for _ in range(3):
        (place,) = (one for one in cluster.all if one.in_flight["killer"])
        place.redelivery.interrupt("killed")
        place.redelivery.resume()
        await settled()
    with pytest.raises(EngineKilledError):
        await killer
    for below in cluster.below.values():
        below.end.set()
    assert (await friend).answer is not None


async def test_a_caller_that_leaves():
    """It frees its place wherever it waits."""
    cluster = Cluster(1)
    asked = cluster.ask()
    await settled()
    cluster.all[0].redelivery.interrupt("it died")
    waiting = cluster.ask()
    await settled()
    for task in (asked, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert cluster.loads() == [0]


async def test_adapters():
    """One goes where it is loaded; one that all have stays together while others are asked."""
    cluster = Cluster(3)
    cluster.all[1].models["rare"] += 1
    rare = [cluster.ask("rare") for _ in range(5)]
    await settled()
    assert cluster.loads() == [0, 5, 0]
    for instance in cluster.all:
        instance.models.update(["a", "b"])
    others = [cluster.ask(name) for _ in range(3) for name in ("a", "b")]
    await settled()
    together = [{name for name in one.in_flight if name != "rare"} for one in cluster.all]
    assert together in ([{"a"}, set(), {"b"}], [{"b"}, set(), {"a"}])
    cluster.all[1].redelivery.interrupt("it died")
    await settled()
    assert not any(task.done() for task in rare)  # the others do not have it
    cluster.all[1].redelivery.resume()
    for below in cluster.below.values():
        below.end.set()
    assert {reply.answer for reply in await asyncio.gather(*rare)} == {1}
    await asyncio.gather(*others)


async def test_one_of_them_cannot_be_changed_alone():
    """Loading an adapter into whichever is chosen would make them answer differently."""
    cluster = Cluster(2)
    with pytest.raises(UnsupportedError):
        await cluster.spread.send(
            Exchange(WireRequest("POST", "/v1/load_lora_adapter", b"{}", administers=True))
        )
    assert WIRE.administers is False
