"""What is asynchronous here, for callers that block."""

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
    """An asynchronous context manager, held open on a thread and an event loop of its own.

    Making one waits until the block is entered, and raises what entering it raises. `call` and
    `close` may be used from any thread, also where an event loop runs (which they block). Whoever
    forgets to close it closes it by letting it go, or at the latest with the interpreter's end.
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
        """What `work`, given what the block holds, comes to. Raises RuntimeError when closed."""
        answer = self._thread.submit(work)
        try:
            return answer.result()
        except CancelledError:
            raise self._thread.closed_error() from None
        except BaseException:  # Ctrl-C, for one: nobody waits for the answer any more
            answer.cancel()
            raise

    def close(self) -> None:
        """Leave the block and end the thread; what is under way is cancelled. Idempotent.

        Raises what leaving the block raises.
        """
        self._finalizer()


class _Thread(threading.Thread, Generic[T]):
    """Knows nothing of its Held, so that this can be let go."""

    def __init__(self, opening: Opening[T], *, name: str) -> None:
        super().__init__(name=name, daemon=True)  # others are joined before they could be ended
        self.entered: Future[None] = Future()
        self._opening = opening
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._holding: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._lock = threading.RLock()  # a garbage collection within it may call `end`
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
        if threading.current_thread() is self:  # a garbage collection may happen here, too
            return
        self.join()
        if self._failure is not None:
            raise self._failure

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._hold())
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
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
                # as the interpreter ends, pools take no work any more and no thread can be started
                self._loop.set_default_executor(_OnThisThread())
        finally:
            await self._refuse_calls()

    async def _refuse_calls(self) -> None:
        with self._lock:
            self._closed = True
        await asyncio.sleep(0)  # makes the tasks of what was submitted before
        await asyncio.sleep(0)  # begins them
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _leave(self) -> None:
        self._ending.set()
        if self._holding is not None and not self.entered.done():
            self._holding.cancel()

    async def _answer(self, work: Callable[[T], Awaitable[Result]]) -> Result:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            return await work(self._value)
        finally:
            self._under_way.discard(task)


class _OnThisThread(ThreadPoolExecutor):
    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever awaits it gets it
            future.set_exception(error)
        return future
