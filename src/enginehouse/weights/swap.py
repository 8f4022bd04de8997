"""Swapping the full weights of a running server: checked, proven, and undone if that fails."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import filelock
import msgspec

from enginehouse.client.swap_gate import SwapGate
from enginehouse.client.transport import Timeouts, Transport, WireRequest, open_transport
from enginehouse.client.wire import InFlight
from enginehouse.core.errors import ModelError, UnsupportedError, WeightsError, WireError
from enginehouse.engines.base import Engine
from enginehouse.engines.registry import engines_that
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout
from enginehouse.weights.after_wake import prove_adapters_again
from enginehouse.weights.checkpoint import checked_digest, digest_of
from enginehouse.weights.declared import Declaration, Weights, declare, read_declaration
from enginehouse.weights.limits import DEADLINE
from enginehouse.weights.replacement import Replacement, WeightLoader

Result = TypeVar("Result")


class Swapped(msgspec.Struct, frozen=True, kw_only=True):
    """A swap that succeeded: the weights before and after it, and where its seconds went.

    `checking` comes before anything is sent: configuration, file headers, and the digest of what
    was not hashed before. `draining` is the wait for requests in flight, `replacing` everything
    else except the `canary`, including a transfer. `unloaded`: adapters that the server had lost
    while it slept, and that could not be loaded again.
    """

    before: Weights
    after: Weights
    checking: float
    draining: float
    replacing: float
    canary: float
    unloaded: tuple[str, ...] = ()


class WeightSwapper:
    """Swaps the weights of one server on this machine; an asynchronous context manager.

    `started` are the weights that it was started with; `file` records which ones it has now, so
    that they can be restored (`restore`) when it is started again. Our own requests go through
    `gate`. `alone`: no other process may swap while the block lasts. `condemn` tells a supervisor,
    if there is one, that the server has failed and why.
    """

    def __init__(
        self,
        server: Server,
        *,
        engine: Engine,
        started: Weights,
        file: Path,
        layout: Layout,
        alone: bool = False,
        condemn: Callable[[str], None] | None = None,
    ) -> None:
        if engine.wire.weights is None:
            able = engines_that(lambda other: other.wire.weights is not None)
            raise UnsupportedError(
                f"the weights of a {engine.name} server cannot be swapped",
                fix=f"serve it with an engine that swaps weights ({', '.join(able)}), or start a "
                "server of its own for the checkpoint",
            )
        self._server = server
        self._engine = engine
        self._started = started
        self._file = file
        self._layout = layout
        self.gate = SwapGate(started.digest)
        self._alone = alone
        self._condemn = condemn
        self._lock = filelock.FileLock(file.with_suffix(".lock"), mode=0o600)
        self._dozes = engine.wire.weights.sleep_flag in (server.command or ())
        self._busy = False
        self._turn = asyncio.Lock()  # held while a swap or a restoration gives orders to the server
        self._transport: Transport | None = None

    async def __aenter__(self) -> Self:
        """Raises WeightsError if another process has the right to swap."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if self._alone:
            self._acquire()
        self._transport = open_transport(
            self._server.base_url,
            api_key=self._server.api_key,
            admin_key=self._server.admin_key,
            authorize=self._engine.wire.authorize,
            timeouts=Timeouts(total=None),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            await self._transport.close()
            self._transport = None
        self._lock.release(force=True)

    @property
    def started(self) -> Weights:
        """The weights that the server was started with."""
        return self._started

    @property
    def unnamed(self) -> str:
        """What the server calls weights that were never swapped."""
        assert self._engine.wire.weights is not None
        return self._engine.wire.weights.unnamed

    @property
    def current(self) -> Weights:
        """The weights that the server should have now."""
        return self._declaration().current

    @property
    def declared(self) -> Weights:
        """Those that a restart or a failure brings back: the last ones that were on disk."""
        return self._declaration().declared

    def _declaration(self) -> Declaration:
        return read_declaration(self._file) or Declaration(declared=self._started)

    async def ask(self, request: WireRequest) -> bytes:
        """The body of the server's reply. Raises WireError, or WeightsError for a missing path."""
        return await self._replacement().send(request)

    async def swap(
        self, folder: Path, *, in_flight: InFlight = "drain", deadline: float = DEADLINE
    ) -> Swapped:
        """Replace the current weights by the checkpoint in `folder`.

        New requests wait. Those in flight are completed first ("drain"), or aborted ("abort"), in
        which case ours are repeated on the new weights. The folder must not change until the next
        swap, for restarts. The swap fails after `deadline` seconds; undoing it may take as long
        again.

        Raises ModelError for a checkpoint that does not fit (nothing was sent to the server), and
        WeightsError, which says whether the old weights are back.
        """
        with self._exclusively():
            began = time.perf_counter()
            old = self.current
            new = await asyncio.to_thread(self._check, folder, version=old.version + 1)
            checking = time.perf_counter() - began
            return await self._replace(
                self._replacement(), old, new, in_flight, deadline=deadline, checking=checking
            )

    def _check(self, folder: Path, *, version: int) -> Weights:
        path = folder.expanduser().absolute()
        assert self._started.path is not None
        digest = checked_digest(path, served=self._started.path, layout=self._layout)
        return Weights(path=path, digest=digest, version=version)

    async def receive(
        self,
        label: str,
        load: WeightLoader,
        *,
        in_flight: InFlight = "drain",
        deadline: float = DEADLINE,
    ) -> Swapped:
        """Replace the current weights by those that `load` sends, which are on no disk.

        Otherwise as `swap`. They cannot be restored: after a restart or a failed swap the server
        has the `declared` ones, and samples say so. If the previous weights had been sent too, a
        failure loses them, and the error says so.
        """
        with self._exclusively():
            began = time.perf_counter()
            old = self.current
            digest = f"sent-{secrets.token_hex(4)}-{label}"
            new = Weights(digest=digest, version=old.version + 1)
            await self._require_unchanged(self.declared)  # or the swap could not be undone
            checking = time.perf_counter() - began
            return await self._replace(
                self._replacement(load), old, new, in_flight, deadline=deadline, checking=checking
            )

    async def restore(self) -> None:
        """Bring the declared weights back after a restart, before the caller lets requests in.

        Raises WeightsError.
        """
        wanted = self.declared
        step = self._replacement()
        try:
            async with asyncio.timeout(DEADLINE), self._turn:
                self._forget_sent()
                wanted = self.declared
                self.gate.relabel(wanted.digest)
                await self._require_unchanged(wanted)
                if wanted.version != self._started.version:
                    await step.hold("abort")
                    await step.put(wanted)
                    await self._prove_adapters()
        except (WireError, WeightsError, ModelError, TimeoutError) as error:
            raise WeightsError(
                f"the server was started again, but not with the weights in {wanted.path}",
                why=_describe(error, step, DEADLINE),
                fix="serve again, then swap to a checkpoint that exists",
                kind="restore",
                restored=False,
            ) from error

    async def name(self) -> str | None:
        """What the server itself calls its weights; None if it does not say."""
        try:
            return await self._replacement().name()
        except (WireError, WeightsError):
            return None

    async def _replace(
        self,
        step: Replacement,
        old: Weights,
        new: Weights,
        in_flight: InFlight,
        *,
        deadline: float,
        checking: float,
    ) -> Swapped:
        try:
            async with asyncio.timeout(deadline):
                began = time.perf_counter()
                step.stage = "the end of the requests in flight"
                await self.gate.close(in_flight)
                async with self._turn:
                    await step.hold(in_flight)
                    held = time.perf_counter()
                    self._forget_sent()
                    await step.put(new)
                    replaced = time.perf_counter()
                    step.stage = "the proof of its adapters"
                    unloaded = await self._prove_adapters()
                    await self._declare(new, step)
        except (WireError, WeightsError, ModelError, TimeoutError) as error:
            failure = await _uncancelled(self._undo(error, step, old, deadline=deadline))
            raise failure from error
        except BaseException as error:
            failure = await _uncancelled(self._undo(error, step, old, deadline=deadline))
            error.add_note(failure.message)
            raise
        finally:
            self.gate.open(self.current.digest)
        return Swapped(
            before=old,
            after=new,
            checking=checking,
            draining=held - began,
            replacing=replaced - held - step.canary_seconds,
            canary=step.canary_seconds,
            unloaded=unloaded,
        )

    async def _prove_adapters(self) -> tuple[str, ...]:
        """If the server has slept: the adapters that it lost and could not load again."""
        return await prove_adapters_again(self._server, self._engine) if self._dozes else ()

    async def _declare(self, new: Weights, step: Replacement) -> None:
        """Not in a thread, where it could still happen after a cancellation."""
        if new.path is not None:
            declare(self._file, new)
            return
        declare(self._file, self.declared, sent=new)
        # A restart before that line shows here; one after it forgets them again, in `restore`.
        await step.require_name(new.name)

    def _forget_sent(self) -> None:
        """Record that the server no longer has sent weights, or is about to lose them."""
        declaration = self._declaration()
        if declaration.sent is not None:
            declare(self._file, declaration.declared)

    async def _undo(
        self, error: BaseException, step: Replacement, old: Weights, *, deadline: float
    ) -> WeightsError:
        """Undo a failed swap. Returns what happened, and which weights the server has now."""
        problem = await self._restore_old(step, old, deadline=deadline)
        lost = old.path is None and (step.touched or problem is not None)
        state = problem or "the old ones answer as before"
        if lost:
            state = problem or f"those in {self.declared.path} answer"
            state += f"; {old.digest} is lost, as it was on no disk"
        name = self._server.name or self._server.base_url
        cause = error if isinstance(error, WeightsError) else None
        kind = "deadline" if isinstance(error, TimeoutError) else "wire"
        return WeightsError(
            f"the weights of {name} were not swapped; {state}",
            why=_describe(error, step, deadline),
            fix=(cause and cause.fix) or "read the server's log for the cause, then swap again",
            log=self._server.log,
            kind=(cause and cause.kind) or kind,
            restored=problem is None and not lost,
        )

    async def _restore_old(self, step: Replacement, old: Weights, *, deadline: float) -> str | None:
        """None if the server answers with `old` or the declared; otherwise what it does instead."""
        back, declared = self._replacement(), self.declared
        try:
            async with asyncio.timeout(deadline), self._turn:
                if step.touched:
                    self._forget_sent()
                    await self._require_unchanged(declared)
                    # What runs was begun with the new weights, so it is aborted.
                    await back.hold("abort", before=step)
                    await back.put(declared)
                    with suppress(WireError):  # the weights are back, whatever the adapters do
                        await self._prove_adapters()
                elif step.held:
                    await back.release()
        except (WireError, WeightsError, ModelError, TimeoutError) as error:
            why = _describe(error, back, deadline)
            which = f"those in {declared.path}" if old.path is None else "the old ones"
            if self._condemn is not None:
                self._condemn(f"its weights could not be swapped, nor restored: {why}")
                return f"the server is started again with {which}"
            return (
                f"the old ones are NOT back: {why}; end its process: if `enginehouse serve` "
                f"supervises it, it comes back with those in {declared.path}"
            )
        return None

    async def _require_unchanged(self, weights: Weights) -> None:
        """Raise WeightsError if the folder's content changed; hashes only touched files."""
        if weights.path is None:  # there is nothing that could have changed
            return
        digest = await asyncio.to_thread(digest_of, weights.path, layout=self._layout)
        if digest != weights.digest:
            raise WeightsError(
                f"{weights.path} no longer holds the weights that were loaded from it",
                why=f"its digest was {weights.digest[:12]}, and is {digest[:12]}",
                fix="write each checkpoint into its own folder",
                kind="changed",
            )

    def _replacement(self, load: WeightLoader | None = None) -> Replacement:
        assert self._transport is not None, "use the swapper inside `async with`"
        return Replacement(
            self._transport,
            wire=self._engine.wire,
            model=self._server.models[0],
            capabilities=self._engine.capabilities(self._server.version),
            dozes=self._dozes,
            check=self._require_unchanged,
            load=load,
        )

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        if self._busy:
            raise self._busy_error()
        self._acquire()
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise self._busy_error() from None

    def _busy_error(self) -> WeightsError:
        name = self._server.name or self._server.base_url
        return WeightsError(
            f"the weights of {name} are being swapped by another caller",
            why="another swap is in progress, or the process that serves it does not share them",
            fix="wait for the other swap, or swap from the process that serves it",
            kind="taken",
        )


async def _uncancelled(work: Coroutine[Any, Any, Result]) -> Result:
    """Await work that must be completed, and ends by itself; a cancellation waits for it."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


def _describe(error: BaseException, step: Replacement, deadline: float) -> str:
    """The stage and the error, in one line."""
    if isinstance(error, TimeoutError):
        return f"{step.stage}: not done within {deadline:g} s"
    if isinstance(error, WireError | WeightsError | ModelError):
        return f"{step.stage}: {error.message}" + (f" ({error.why})" if error.why else "")
    return f"{step.stage} was interrupted ({type(error).__name__})"
