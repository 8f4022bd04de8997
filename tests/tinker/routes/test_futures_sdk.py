"""The SDK's own clients of the polls: its future, and its poller of a session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse.runtime.http_service import listening, running
from enginehouse.tinker.application import make_application
from enginehouse.tinker.future import Future
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.guard import Guard
from enginehouse.tinker.routes.futures import futures_routes
from enginehouse.tinker.sampling.base import Sampled, Sequence
from enginehouse.tinker.wire import encode_sampled

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the SDK, by pydantic
    pytest.mark.timeout(60),
]

BODY = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {}}


class Holder:
    """What the SDK's futures need of its client, for one connection."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._inflight_response_bytes_semaphore = self
        self.reserved: list[int] = []
        self.cancelled: list[str] = []

    @contextmanager
    def aclient(self, _: Any) -> Iterator[Any]:
        """The one connection."""
        yield self._client

    def acquire(self, size: int) -> Any:
        """Room for an answer of that size."""
        self.reserved.append(size)

        class Room(nullcontext[None]):
            async def __aenter__(self) -> None: ...
            async def __aexit__(self, *_: object) -> None: ...

        return Room()

    def run_coroutine_threadsafe(self, work: Any) -> Any:
        """A task of this loop; the SDK has one of its own."""
        return asyncio.ensure_future(work)

    def track_futures_poller_task(self, task: Any) -> None:
        """Nothing to track."""

    def enqueue_cancel(self, request_id: str) -> None:
        """The request that was given up."""
        self.cancelled.append(request_id)

    def get_telemetry(self) -> None:
        """None."""

    def _should_pause_on_billing(self, *_: Any) -> bool:
        return False

    def _is_retryable_exception(self, error: Exception) -> bool:
        return False


@pytest.fixture
async def futures(tmp_path: Path) -> AsyncIterator[Futures]:
    """Futures in an empty folder."""
    opened = Futures.open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def holder(futures: Futures) -> AsyncIterator[Holder]:
    """The SDK's client of the routes, as the user ann; polls end after 50 ms."""
    from tinker._client import AsyncTinker
    from tinker.types.client_config_response import ClientConfigResponse

    routes = make_application([futures_routes(futures, longest_poll=0.05)])
    service = Guard(routes, authenticate=lambda _: "ann", largest_body=1 << 20)
    with listening(None, option="--port") as listener:
        async with (
            running(service, listener) as server,
            AsyncTinker(
                base_url=server.url,
                api_key="tml-ann",
                _strict_response_validation=True,  # as the SDK does
                _client_config=ClientConfigResponse(use_pyqwest_transport=False),
            ) as client,
        ):
            yield Holder(client)
            futures.release()


async def accept(futures: Futures, seq_id: int = 1) -> Future:
    """A sample of the session s."""
    return await futures.accept(
        key=str(seq_id),
        kind="sample",
        user="ann",
        body=b"{}",
        content_type="application/json",
        details={"sampling_session_id": "s", "seq_id": seq_id},
    )


def sdk_future(holder: Holder, future: Future, **more: Any) -> Any:
    """The SDK's side of a future."""
    from tinker.lib.api_future_impl import _APIFuture

    from tinker import types

    return _APIFuture(
        types.SampleResponse,
        holder,  # type: ignore[arg-type]
        types.UntypedAPIFuture(request_id=future.request_id),
        request_start_time=time.time(),
        request_type="Sample",
        **more,
    )


def answer(tokens: int) -> bytes:
    """One sequence of that many tokens."""
    sequence = Sequence(
        tokens=np.arange(tokens, dtype=np.int32),
        logprobs=np.full(tokens, -0.5, dtype=np.float32),
        stopped=True,
    )
    return encode_sampled(Sampled(sequences=(sequence,)), body=BODY)


class Observer:
    """Is told why a request waits."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str | None]] = []
        self.waits = asyncio.Event()

    def on_queue_state_change(self, state: Any, reason: str | None) -> None:
        """Called by the SDK."""
        self.told.append((state.value, reason))
        self.waits.set()


@pytest.mark.parametrize("tokens", [3, 20_000])
async def test_a_future_of_the_sdk_gets_its_answer(futures, holder, tokens):
    """After polls that end without one, which say why; a large one after its size."""
    future = await accept(futures)
    futures.hold(future, "2 samples are before it", state="paused_capacity")
    observer = Observer()
    asked = sdk_future(holder, future, queue_state_observer=observer)
    await observer.waits.wait()
    payload = answer(tokens)
    await futures.finish(future, payload)
    response = await asked._future
    assert response.sequences[0].tokens == list(range(tokens))
    assert observer.told[0] == ("paused_capacity", "2 samples are before it")
    assert observer.told[-1] == ("active", None)
    assert holder.reserved == ([] if tokens == 3 else [len(payload)])


async def test_a_failure_reaches_the_user_with_its_category(futures, holder):
    """At once, and as the SDK's own exception."""
    from tinker._exceptions import RequestFailedError
    from tinker.types import RequestErrorCategory

    future = await accept(futures)
    await futures.fail(future, "NaN in datum 0", category="user")
    with pytest.raises(RequestFailedError, match="NaN in datum 0") as failed:
        await sdk_future(holder, future)._future
    assert failed.value.category is RequestErrorCategory.User


async def test_a_sample_that_is_no_longer_known_is_sampled_again(futures, holder):
    """The SDK's retry handler does so for this exception."""
    from tinker.lib.retryable_exception import RetryableException

    future = await accept(futures)
    await futures.finish(future, answer(1))
    futures.acknowledge([future.request_id], user="ann")
    with pytest.raises(RetryableException):
        await sdk_future(holder, future)._future


async def test_the_poller_of_a_session_serves_all_its_samples(futures, holder):
    """Answers come in any order; those that were retrieved are deleted."""
    from tinker.lib.session_futures_poller import SessionFuturesPoller

    poller: Any = SessionFuturesPoller(
        holder,  # type: ignore[arg-type]
        sampling_session_id="s",
        cloned_sampler_id=0,
    )
    samples = [await accept(futures, number) for number in range(20)]
    asked = [sdk_future(holder, sample, futures_poller=poller)._future for sample in samples]
    for number in reversed(range(20)):
        await futures.finish(samples[number], answer(number + 1))
    responses = await asyncio.gather(*asked)
    assert [len(r.sequences[0].tokens) for r in responses] == list(range(1, 21))
    while futures.accepted("0") or futures.accepted("19"):  # noqa: ASYNC110 (acknowledged later)
        await asyncio.sleep(0)
    poller.close()
    await asyncio.gather(poller._task, return_exceptions=True)
