"""Asynchronous work for callers that block, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, wait
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Generic, TypeVar

from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal

from enginehouse.runtime.interrupts import Interrupts

T = TypeVar("T")
Result = TypeVar("Result")
Opening = Callable[[], AbstractAsyncContextManager[T]]

# Seconds. A signal that comes just before a thread begins to wait does not end its waiting, and
# its handler only runs after that.
_LOOK_EVERY = 0.1


class Portal(Generic[T]):
    """An asynchronous context manager, held open on an event loop of its own.

    Creating one waits until the block is entered, and raises what entering it raises. `call` and
    `close` may be used from any thread, also where an event loop runs (which they block). A portal
    that nobody closes is closed by the garbage collector, or at the interpreter's exit.
    """

    def __init__(self, opening: Opening[T], *, name: str) -> None:
        self._thread = _PortalThread(opening, name=name)
        self._finalizer = weakref.finalize(self, self._thread.close)
        try:
            self._thread.open()
        except BaseException:
            self.close()
            raise

    def call(self, work: Callable[[T], Awaitable[Result]]) -> Result:
        """Await `work`, given what the block yielded. Raises RuntimeError when closed."""
        answer = self._thread.submit(work)
        try:
            while not wait([answer], timeout=_LOOK_EVERY).done:
                pass
            return answer.result()
        except CancelledError:
            raise self._thread.closed_error() from None
        except BaseException:  # such as Ctrl-C: nobody waits for the answer any more
            answer.cancel()
            raise

    def close(self) -> None:
        """Cancel the calls in flight, leave the block, and end the thread. Idempotent.

        Raises what leaving the block raises.
        """
        self._finalizer()


class _PortalThread(Generic[T]):
    """Holds no reference to its Portal, which can thus be garbage-collected."""

    def __init__(self, opening: Opening[T], *, name: str) -> None:
        self._name = name
        self._opening = opening
        options = {"loop_factory": _Loop}
        self._running = start_blocking_portal(backend_options=options, name=name)
        self._portal: BlockingPortal | None = None
        self._left: Future[Any] | None = None
        self._loop: _Loop
        self._value: T
        self._holding: asyncio.Task[Any] | None = None
        self._ending = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._lock = threading.RLock()  # a garbage collection within it may call `close`
        self._is_closed = False

    def open(self) -> None:
        self._portal = self._running.__enter__()
        self._left, _ = self._portal.start_task(self._hold)

    def submit(self, work: Callable[[T], Awaitable[Result]]) -> Future[Result]:
        with self._lock:
            if self._is_closed:
                raise self.closed_error()
            return asyncio.run_coroutine_threadsafe(self._answer(work), self._loop)

    def closed_error(self) -> RuntimeError:
        return RuntimeError(f"{self._name} has been closed")

    def close(self) -> None:
        if self._portal is None:
            return
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._leave)
        if _running_loop() is self._loop:
            # a garbage collection on the thread itself, which cannot wait for its own end
            threading.Thread(target=self._running.__exit__, args=(None, None, None)).start()
            return
        self._running.__exit__(None, None, None)
        if self._left is not None:
            self._left.result()

    def _leave(self) -> None:
        self._ending.set()
        if self._left is None and self._holding is not None:
            self._holding.cancel()  # the block is still being entered

    async def _hold(self, *, task_status: TaskStatus[None]) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _Loop)
        assert self._portal is not None
        self._loop, self._holding = loop, asyncio.current_task()
        try:
            async with self._opening() as self._value:
                task_status.started()
                await self._ending.wait()
                await self._refuse_calls()
                loop.is_ending = True
        finally:
            await self._refuse_calls()
            await self._portal.stop()

    async def _refuse_calls(self) -> None:
        with self._lock:
            self._is_closed = True
        await asyncio.sleep(0)  # makes the tasks of what was submitted before
        await asyncio.sleep(0)  # begins them
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _answer(self, work: Callable[[T], Awaitable[Result]]) -> Result:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            return await work(self._value)
        finally:
            self._calls.discard(task)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


class _Loop(asyncio.SelectorEventLoop):
    """While it ends, it runs in its own thread what is meant for others.

    At the interpreter's exit, pools accept no work any more and no thread can be started.
    """

    is_ending = False

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        if not self.is_ending:
            return super().run_in_executor(executor, func, *args)
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - raised where the future is awaited
            future.set_exception(error)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        if not self.is_ending:
            await super().shutdown_default_executor(*args)


def run_blocking(
    work: Callable[[], Awaitable[Result]], *, interrupts: Interrupts, name: str
) -> Result:
    """Await `work()`. May be called where an event loop runs (which it blocks).

    An interrupt cancels the work, and a second one its cleanup; the work has ended when this
    raises CancelledError.
    """
    job = _Job(work)
    is_started = False
    error: BaseException | None = None
    with start_blocking_portal(name=name) as portal, interrupts.stopping_with(job.cancel):
        while True:
            try:
                if not is_started:
                    job.loop = portal.call(asyncio.get_running_loop)
                    portal.start_task_soon(job.run)
                    is_started = True
                while not wait([job.outcome], timeout=_LOOK_EVERY).done:
                    pass
                break
            except BaseException as raised:  # noqa: BLE001 - another signal's handler
                error = raised
                job.cancel()
    if error is not None:
        raise error
    return job.outcome.result()


class _Job(Generic[Result]):
    """Work that can be cancelled more than once, and may await what it needs to clean up.

    anyio's own cancellation would interrupt every await of the cleanup.
    """

    def __init__(self, work: Callable[[], Awaitable[Result]]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.outcome: Future[Result] = Future()
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    async def run(self) -> None:
        self._task = asyncio.ensure_future(self._work())
        if self._is_cancelled:  # before it began
            self._task.cancel()
        try:
            self.outcome.set_result(await self._task)
        except BaseException as error:  # noqa: BLE001 - raised where the outcome is awaited
            self.outcome.set_exception(error)

    def cancel(self) -> None:
        self._is_cancelled = True
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop has just ended
                self.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
