"""Asynchronous context managers for callers that block."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Result = TypeVar("Result")
Opening = Callable[[], AbstractAsyncContextManager[T]]


class Held(Generic[T]):
    """An asynchronous context manager, held open on its own thread and event loop.

    The constructor waits until the block is entered, and raises what entering it raises. `call` and
    `close` may be used from any thread, also inside an event loop, which they block. If it is not
    closed, garbage collection or the end of the interpreter closes it.
    """

    def __init__(self, opening: Opening[T], *, name: str) -> None:
        self._thread = _Thread(opening, name=name)
        self._finalizer = weakref.finalize(self, self._thread.end)
        self._thread.start()
        try:
            self._thread.entered.result()
        except BaseException:
            self.close()
            raise

    def call(self, work: Callable[[T], Awaitable[Result]]) -> Result:
        """The result of `work`, which gets the block's value. Raises RuntimeError when closed."""
        answer = self._thread.submit(work)
        try:
            return answer.result()
        except CancelledError:
            raise self._thread.closed_error() from None
        except BaseException:  # such as Ctrl-C: nobody waits for the answer any more
            answer.cancel()
            raise

    def close(self) -> None:
        """Leave the block and end the thread; in-flight calls are cancelled. Idempotent.

        Raises what leaving the block raises.
        """
        self._finalizer()


class _Thread(threading.Thread, Generic[T]):
    """Has no reference to its Held, so that garbage collection can close it."""

    def __init__(self, opening: Opening[T], *, name: str) -> None:
        super().__init__(name=name, daemon=True)  # others are joined before they could be ended
        self.entered: Future[None] = Future()
        self._opening = opening
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._holding: asyncio.Task[None] | None = None
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._lock = threading.RLock()  # garbage collection inside it may call `end`
        self._closed = False
        self._failure: BaseException | None = None
        self._value: T

    def submit(self, work: Callable[[T], Awaitable[Result]]) -> Future[Result]:
        with self._lock:
            if self._closed:
                raise self.closed_error()
            return asyncio.run_coroutine_threadsafe(self._answer(work), self._loop)

    def closed_error(self) -> RuntimeError:
        return RuntimeError(f"{self.name} has been closed")

    def end(self) -> None:
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(self._leave)
        if threading.current_thread() is self:  # garbage collection may happen on this thread, too
            return
        self.join()
        if self._failure is not None:
            raise self._failure

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._hold())
        except BaseException as error:  # noqa: BLE001 - raised where somebody waits
            if self.entered.done():
                self._failure = error
            else:
                self.entered.set_exception(error)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _hold(self) -> None:
        self._holding = asyncio.current_task()
        try:
            async with self._opening() as self._value:
                self.entered.set_result(None)
                await self._ending.wait()
                await self._refuse_calls()
                # while the interpreter ends, pools take no work and no thread can be started
                self._loop.set_default_executor(_OnThisThread())
        finally:
            await self._refuse_calls()

    async def _refuse_calls(self) -> None:
        with self._lock:
            self._closed = True
        await asyncio.sleep(0)  # creates the tasks of the calls submitted before
        await asyncio.sleep(0)  # starts them
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)

    def _leave(self) -> None:
        self._ending.set()
        if self._holding is not None and not self.entered.done():
            self._holding.cancel()

    async def _answer(self, work: Callable[[T], Awaitable[Result]]) -> Result:
        task = asyncio.current_task()
        assert task is not None
        self._in_flight.add(task)
        try:
            return await work(self._value)
        finally:
            self._in_flight.discard(task)


class _OnThisThread(ThreadPoolExecutor):
    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)
        return future
