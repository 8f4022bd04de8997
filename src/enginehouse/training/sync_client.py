"""What vLLM's end of a weight transfer drives in the trainer's process, from whatever threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from typing import Any

from enginehouse.client.transport import WireRequest
from enginehouse.client.wire import TransferEndpoints, UpdateInfo
from enginehouse.core.errors import EnginehouseError, WeightsError
from enginehouse.weights.replacement import Send
from enginehouse.weights.transfer import ask_about_transfer

_log = logging.getLogger(__name__)


class WeightSyncClient:
    """A VLLMWeightSyncClient (vllm/distributed/weight_transfer/base.py, 0.32): four methods.

    They block, and raise what the server says. Updates are let through while a swap of weights
    waits for them, and at no other time: a sender that comes late cannot touch the server.
    """

    def __init__(
        self, endpoints: TransferEndpoints, *, initialize: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self.endpoints = endpoints
        self._initialize = initialize
        self._lock = threading.Lock()
        self._line: Line | None = None

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Tell the engine how weights will come; at any time, once."""
        try:
            self._initialize(init_info)
        except EnginehouseError as error:  # NCCL's sender may never come to look at it
            _log.error("the server cannot be sent weights: %s", error)
            raise

    def start_weight_update(self) -> None:
        """Begin an update."""
        self._call(self.endpoints.start)

    def update_weights(self, update_info: UpdateInfo) -> None:
        """Have the engine receive a part; returns when it has."""
        self._call(self.endpoints.update(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:  # noqa: ARG002
        """End the update. The swap names the weights, whatever `weight_version` is."""
        self._call(self.endpoints.finish)

    def _call(self, request: WireRequest) -> None:
        with self._lock:
            line = self._line
            if line is None:
                raise _over()
            call: Future[None] = asyncio.run_coroutine_threadsafe(line.ask(request), line.loop)
        try:
            call.result()
        except CancelledError:
            raise _over() from None
        line.finished = request is self.endpoints.finish

    @asynccontextmanager
    async def open(self, send: Send) -> AsyncIterator[Line]:
        """Let calls through for the block; those that are under way at its end fail."""
        line = Line(send, endpoints=self.endpoints)
        with self._lock:
            self._line = line
        try:
            yield line
        finally:
            with self._lock:
                self._line = None
            await line.close()


class Line:
    """One transfer's way to the server. Belongs to the running loop."""

    def __init__(self, send: Send, *, endpoints: TransferEndpoints) -> None:
        self._endpoints = endpoints
        self.loop = asyncio.get_running_loop()
        self.finished = False
        self._send = send
        self._failed: asyncio.Future[None] = self.loop.create_future()
        self._calls: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def ask(self, request: WireRequest) -> None:
        """One call; its error is that of the transfer, whatever the sender makes of it."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            if self._closed:
                raise _over()
            await ask_about_transfer(self._send, request, endpoints=self._endpoints)
        except EnginehouseError as error:
            if not self._failed.done():
                self._failed.set_exception(error)
            raise
        finally:
            self._calls.discard(task)

    async def until_sent(self, sending: Future[None]) -> None:
        """Return when the sender has ended and finished its update.

        Raises the first error of a call at once, as NCCL's sender may then wait for ever; and
        WeightsError for the sender's own.
        """
        sent = asyncio.wrap_future(sending)
        await asyncio.wait({sent, self._failed}, return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            sent.add_done_callback(lambda future: future.cancelled() or future.exception())
            self._failed.result()
        if (error := sent.exception()) is not None:
            raise WeightsError(
                "the sender failed",
                why=f"{type(error).__name__}: {error}",
                fix="mend what its traceback shows, then send again",
                kind="sender",
            ) from error
        if not self.finished:
            raise WeightsError(
                "the sender ended without having finished an update",
                fix="hand over a function that starts, updates and finishes by way of the client",
                kind="sender",
            )

    async def close(self) -> None:
        """Cancel the calls that are under way, and those that are about to begin."""
        self._closed = True
        await asyncio.sleep(0)  # makes the tasks of calls that were handed over before
        await asyncio.sleep(0)  # begins them
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        if not self._failed.cancel():
            self._failed.exception()  # it has been heard


def _over() -> WeightsError:
    return WeightsError(
        "no weights are being swapped that this could be a part of",
        why="the transfer is over, failed or too late; or it is done outside of `send`",
        fix="hand the function that sends to WeightSender.send",
        kind="over",
    )
