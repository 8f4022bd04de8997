"""What vLLM's end of a weight transfer calls in the trainer's process, from any thread."""

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

    They block, and raise the server's errors. Updates pass only while a swap of weights waits for
    them: a sender that comes too late cannot touch the server.
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
        """Let calls pass for the block; those in flight at its end fail."""
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
    """One transfer's connection to the server, for the running loop."""

    def __init__(self, send: Send, *, endpoints: TransferEndpoints) -> None:
        self._endpoints = endpoints
        self.loop = asyncio.get_running_loop()
        self.finished = False
        self._send = send
        self._failed: asyncio.Future[None] = self.loop.create_future()
        self._requests: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def ask(self, request: WireRequest) -> None:
        """One call; its error fails the transfer, even if the sender ignores it."""
        if self._closed:
            raise _over()
        asking = self.loop.create_task(
            ask_about_transfer(self._send, request, endpoints=self._endpoints)
        )
        self._requests.add(asking)
        try:
            await asking
        except asyncio.CancelledError:
            if self._closed:
                raise _over() from None
            raise
        except EnginehouseError as error:
            if not self._failed.done():
                self._failed.set_exception(error)
            raise
        finally:
            self._requests.discard(asking)

    async def until_sent(self, sending: Future[None]) -> None:
        """Wait until the sender has ended and finished its update.

        Raises the first error of a call at once, since NCCL's sender may then wait forever; and
        WeightsError for an error of the sender.
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
                fix="fix what its traceback shows, then send again",
                kind="sender",
            ) from error
        if not self.finished:
            raise WeightsError(
                "the sender ended without finishing an update",
                fix="pass a function that starts, updates and finishes through the client",
                kind="sender",
            )

    async def close(self) -> None:
        """Cancel the requests in flight; their calls fail, and those that are about to begin."""
        self._closed = True
        for asking in self._requests:
            asking.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        if not self._failed.cancel():
            self._failed.exception()  # it has been reported


def _over() -> WeightsError:
    return WeightsError(
        "no swap of weights is in progress that this could belong to",
        why="the transfer has ended, or the call was made outside of `send`",
        fix="pass the function that sends to WeightSender.send",
        kind="over",
    )
