"""Spreads requests over servers that answer alike: instances of one model.

A request goes to the instance with the fewest requests in flight. It goes to another one only when
its own has died, and only until its reply has begun; the caller gets one answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import msgspec

from enginehouse.client.exchange import Call, Exchange, Forward, InstanceLostError, Reply
from enginehouse.client.redelivery import Redelivery
from enginehouse.client.stack import ServerLayers
from enginehouse.core.errors import UnsupportedError

_NEAR = 1.25  # an adapter's requests stay together on an instance with so many times the least


class Instance:
    """One of several servers that answer alike.

    `models` counts who relies on it to answer to a name. `redelivery`, one of its `layers`, says
    whether it works, and when that changes.
    """

    def __init__(
        self,
        base_url: str,
        *,
        redelivery: Redelivery,
        layers: ServerLayers,
        models: Iterable[str] = (),
        api_key: str | None = None,
        admin_key: str | None = None,
    ) -> None:
        self.base_url = base_url
        self.api_key = api_key
        self.admin_key = admin_key
        self.redelivery = redelivery
        self.layers = layers
        self.models = Counter(models)
        self.in_flight: Counter[str] = Counter()  # by model
        self.asked = 0

    @property
    def load(self) -> tuple[int, int]:
        """Requests in flight, and all so far: the smaller, the sooner it is chosen."""
        return self.in_flight.total(), self.asked


class Instances:
    """The instances that requests are spread over; they may come and go at any time.

    A request for an adapter that only some of them have goes to one of those. While requests for
    several models are in flight, one for an adapter prefers an instance that is answering for it
    already, unless that has a quarter more to do than the one with the least.
    """

    def __init__(self) -> None:
        self._members: list[Instance] = []
        self._error: Exception | None = None
        self._change = asyncio.Event()  # set when requests that wait must look again

    def __iter__(self) -> Iterator[Instance]:
        return iter(tuple(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def add(self, instance: Instance) -> None:
        """Let it be chosen, while its redelivery is open."""
        instance.redelivery.watchers.add(self._change)
        self._members.append(instance)
        self._change.set()

    def remove(self, instance: Instance) -> None:
        """Choose it no more; what is in flight there goes on. Idempotent."""
        if instance in self._members:
            self._members.remove(instance)
            instance.redelivery.watchers.discard(self._change)
            self._change.set()

    def close_for_good(self, error: Exception) -> None:
        """Raise `error` in every request that waits for an instance, now or later."""
        self._error = error
        self._change.set()

    async def take(self, model: str) -> Instance:
        """An instance that works, with one more request in flight: `give_back` follows.

        Waits until there is one. Raises the last one's error if all have been given up.
        """
        while (instance := self._choose(model)) is None:
            self._change.clear()  # every request that waits already wakes all the same
            await self._change.wait()
        instance.in_flight[model] += 1
        instance.asked += 1
        return instance

    def give_back(self, instance: Instance, model: str) -> None:
        """The request has ended, one way or another."""
        instance.in_flight[model] -= 1
        if not instance.in_flight[model]:
            del instance.in_flight[model]

    def _choose(self, model: str) -> Instance | None:
        if self._error is not None:
            raise self._error
        able = [one for one in self._members if one.models[model]] or self._members
        working = [one for one in able if one.redelivery.is_open]
        if not working:
            errors = [one.redelivery.error for one in able]
            if errors and (error := errors[-1]) is not None and None not in errors:
                raise error
            return None
        best = min(working, key=lambda one: one.load)
        if len({name for one in working for name in one.in_flight}) > 1:
            enough = best.in_flight.total() * _NEAR + 1
            near = [one for one in working if one.in_flight.total() <= enough]
            best = min(near, key=lambda one: (one.in_flight[model] == 0, one.load))
        return best


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The way to one instance: through all its layers, and past all of them but the last."""

    send: Forward
    send_directly: Forward


class Spread:
    """The end of a sampler's own stack: sends each exchange down the branch of an instance.

    `open_branch` makes an instance's branch when it is first needed. `model` is what exchanges ask
    that name none.
    """

    def __init__(
        self, instances: Instances, *, model: str, open_branch: Callable[[Instance], Branch]
    ) -> None:
        self._instances = instances
        self._model = model
        self._open_branch = open_branch
        self._branches: dict[Instance, Branch] = {}

    async def send(self, exchange: Exchange) -> Reply:
        """The reply of the first instance that survives the request.

        Raises what that instance's stack raises, EngineKilledError among others, and what
        `Instances.take` does.
        """
        if exchange.wire.administers:
            raise UnsupportedError(
                "one of several instances cannot be changed alone",
                why="requests would be answered differently from then on",
                fix="use a target of the deployment, which all of them have",
            )
        exchange = msgspec.structs.replace(exchange, call=Call(movable=True))
        model = (exchange.sample and exchange.sample.model) or self._model
        while True:
            instance = await self._instances.take(model)
            leave = partial(self._instances.give_back, instance, model)
            try:
                reply = await self._branch(instance).send(exchange)
            except InstanceLostError:
                leave()
            except BaseException:
                leave()
                raise
            else:
                reply.when_closed(leave)
                return reply

    async def send_directly(self, exchange: Exchange) -> list[Reply]:
        """What each instance that works replies, past all layers but the last.

        Raises what the first of them raises.
        """
        working = [one for one in self._instances if one.redelivery.is_open]
        return list(
            await asyncio.gather(*(self._branch(one).send_directly(exchange) for one in working))
        )

    def _branch(self, instance: Instance) -> Branch:
        branch = self._branches.get(instance)
        if branch is None:
            branch = self._branches[instance] = self._open_branch(instance)
        return branch
