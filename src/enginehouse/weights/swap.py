"""Full weights of a running server, swapped: checked, proven, and taken back if that fails."""

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

from enginehouse.client.transport import AiohttpTransport, Timeouts, WireRequest
from enginehouse.client.wire import InFlight
from enginehouse.core.errors import ModelError, UnsupportedError, WeightsError, WireError
from enginehouse.engines.base import Engine
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout
from enginehouse.weights.after_wake import prove_adapters_again
from enginehouse.weights.checkpoint import checked_digest, digest_of
from enginehouse.weights.declared import Declaration, Weights, declare, read_declaration
from enginehouse.weights.gate import SwapGate
from enginehouse.weights.limits import DEADLINE
from enginehouse.weights.replacement import Replacement, WeightLoader

Result = TypeVar("Result")


class Swapped(msgspec.Struct, frozen=True, kw_only=True):
    """A swap that succeeded: the weights before and after it, and where its seconds went.

    `checking` came before anything was sent: configuration, heads of the files, and the digest of
    what was not hashed before. `draining` was the wait for requests under way, `replacing` the rest
    without the `canary`, a transfer included. `unloaded`: adapters that the server had lost in its
    sleep, and that could not be loaded again.
    """

    before: Weights
    after: Weights
    checking: float
    draining: float
    replacing: float
    canary: float
    unloaded: tuple[str, ...] = ()


class WeightSwapper:
    """Swaps the weights of one server that runs on this machine; an asynchronous context manager.

    `started` are those that it was started with, and `file` says which ones it has now, so that
    whoever starts it again can `restore` them. `gate` is what our own requests go through. `alone`:
    no other process may swap while the block lasts. `condemn`, where somebody starts the server
    again when it fails, tells them that it has.
    """

    def __init__(
        self,
        server: Server,
        *,
        engine: Engine,
        started: Weights,
        file: Path,
        layout: Layout,
        gate: SwapGate | None = None,
        alone: bool = False,
        condemn: Callable[[str], None] | None = None,
    ) -> None:
        if engine.wire.weights is None:
            raise UnsupportedError(
                f"the weights of a {engine.name} server cannot be swapped",
                fix="serve the checkpoint with vLLM, or start a server of its own for it",
            )
        self._server = server
        self._engine = engine
        self._started = started
        self._file = file
        self._layout = layout
        self._gate = gate or SwapGate(started.digest)
        self._alone = alone
        self._condemn = condemn
        self._lock = filelock.FileLock(file.with_suffix(".lock"), mode=0o600)
        self._dozes = engine.wire.weights.sleep_flag in (server.command or ())
        self._busy = False
        self._turn = asyncio.Lock()  # a swap and a restoration do not tell the server two things
        self._transport: AiohttpTransport | None = None

    async def __aenter__(self) -> Self:
        """Raises WeightsError if another process has the right to swap."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if self._alone:
            self._acquire()
        self._transport = AiohttpTransport(
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
    def current(self) -> Weights:
        """The weights that the server is to have now."""
        return self._declaration().current

    @property
    def declared(self) -> Weights:
        """Those that a restart or a failure brings back: the last ones that were on the disk."""
        return self._declaration().declared

    def _declaration(self) -> Declaration:
        return read_declaration(self._file) or Declaration(declared=self._started)

    async def ask(self, request: WireRequest) -> bytes:
        """The body of the server's reply. Raises WireError, and WeightsError for what it lacks."""
        return await self._replacement().send(request)

    async def swap(
        self, folder: Path, *, in_flight: InFlight = "drain", deadline: float = DEADLINE
    ) -> Swapped:
        """Put the checkpoint in `folder` in the place of the current one.

        Requests that come meanwhile wait. Those under way end first ("drain"), or are given up
        ("abort"): ours are then asked again of the new weights. The folder must stay as it is until
        the next swap, for restarts. After `deadline` seconds without success the swap has failed;
        taking it back may last as long again.

        Raises ModelError for a checkpoint that does not fit (nothing was sent to the server), and
        WeightsError, which says whether the old weights are back.
        """
        with self._exclusively():
            began = time.perf_counter()
            old = self.current
            new = await asyncio.to_thread(self._checked, folder, version=old.version + 1)
            checking = time.perf_counter() - began
            return await self._swapped(
                self._replacement(), old, new, in_flight, deadline=deadline, checking=checking
            )

    async def receive(
        self,
        label: str,
        load: WeightLoader,
        *,
        in_flight: InFlight = "drain",
        deadline: float = DEADLINE,
    ) -> Swapped:
        """Put weights that `load` brings, and that are on no disk, in the place of the current.

        As `swap` does. Nothing can bring them back: after a restart or a failed swap the server has
        the `declared` ones, and samples say so. Where those before had been sent, too, a failure
        loses them, and the error says that.
        """
        with self._exclusively():
            began = time.perf_counter()
            old = self.current
            digest = f"sent-{secrets.token_hex(4)}-{label}"
            new = Weights(digest=digest, version=old.version + 1)
            await self._demand_unchanged(self.declared)  # or it could not be taken back
            checking = time.perf_counter() - began
            return await self._swapped(
                self._replacement(load), old, new, in_flight, deadline=deadline, checking=checking
            )

    def _checked(self, folder: Path, *, version: int) -> Weights:
        path = folder.expanduser().absolute()
        assert self._started.path is not None
        digest = checked_digest(path, served=self._started.path, layout=self._layout)
        return Weights(path=path, digest=digest, version=version)

    async def restore(self) -> None:
        """After a restart: bring the declared weights back; the caller lets nothing in before.

        Raises WeightsError.
        """
        wanted = self.declared
        step = self._replacement()
        try:
            async with asyncio.timeout(DEADLINE), self._turn:
                self._forget_sent()
                wanted = self.declared
                self._gate.relabel(wanted.digest)
                await self._demand_unchanged(wanted)
                if wanted.version != self._started.version:
                    await step.hold("abort")
                    await step.put(wanted)
                    await self._adapters_proven()
        except (WireError, WeightsError, ModelError, TimeoutError) as error:
            raise WeightsError(
                f"the server was started again, but not with the weights in {wanted.path}",
                why=_said(error, step, DEADLINE),
                fix="swap to a checkpoint that is there, after serving again",
                kind="restore",
                restored=False,
            ) from error

    async def name(self) -> str | None:
        """What the server itself calls its weights; None where it does not say."""
        try:
            return await self._replacement().name()
        except (WireError, WeightsError):
            return None

    async def _swapped(
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
                step.stage = "the end of the requests under way"
                await self._gate.close(in_flight)
                async with self._turn:
                    await step.hold(in_flight)
                    held = time.perf_counter()
                    self._forget_sent()
                    await step.put(new)
                    replaced = time.perf_counter()
                    step.stage = "the proof of its adapters"
                    unloaded = await self._adapters_proven()
                    await self._declare(new, step)
        except (WireError, WeightsError, ModelError, TimeoutError) as error:
            raise await _to_its_end(self._failed(error, step, old, deadline=deadline)) from error
        except BaseException as error:
            failed = await _to_its_end(self._failed(error, step, old, deadline=deadline))
            error.add_note(failed.message)
            raise
        finally:
            self._gate.open(self.current.digest)
        return Swapped(
            before=old,
            after=new,
            checking=checking,
            draining=held - began,
            replacing=replaced - held - step.canary_seconds,
            canary=step.canary_seconds,
            unloaded=unloaded,
        )

    async def _adapters_proven(self) -> tuple[str, ...]:
        """Where the server has slept: the adapters that are lost, and that it has no more."""
        return await prove_adapters_again(self._server, self._engine) if self._dozes else ()

    async def _declare(self, new: Weights, step: Replacement) -> None:
        """Not in a thread: cancelled, it could still be done."""
        if new.path is not None:
            declare(self._file, new)
            return
        declare(self._file, self.declared, sent=new)
        # a restart before that line is seen here; one after it forgets them again, in `restore`
        await step.demand_name(new.name)

    def _forget_sent(self) -> None:
        """The server does not have them any more, or will not in a moment."""
        declaration = self._declaration()
        if declaration.sent is not None:
            declare(self._file, declaration.declared)

    async def _failed(
        self, error: BaseException, step: Replacement, old: Weights, *, deadline: float
    ) -> WeightsError:
        """Take the swap back; what happened, and what became of the old weights."""
        why = _said(error, step, deadline)
        became = await self._taken_back(step, old, deadline=deadline)
        lost = old.path is None and (step.touched or became is not None)
        now = became or "the old ones answer as before"
        if lost:
            now = became or f"those in {self.declared.path} answer"
            now += f"; {old.digest} is lost, as it was on no disk"
        name = self._server.name or self._server.base_url
        found = error if isinstance(error, WeightsError) else None
        return WeightsError(
            f"the weights of {name} were not swapped; {now}",
            why=why,
            fix=(found and found.fix) or "read the server's log for the cause, then swap again",
            log=self._server.log,
            kind=(found and found.kind) or _kind(error),
            restored=became is None and not lost,
        )

    async def _taken_back(self, step: Replacement, old: Weights, *, deadline: float) -> str | None:
        """None if the server answers with `old`, or the declared; else what there is instead."""
        back, declared = self._replacement(), self.declared
        try:
            async with asyncio.timeout(deadline), self._turn:
                if step.touched:
                    self._forget_sent()
                    await self._demand_unchanged(declared)
                    await back.hold("abort", before=step)  # what runs was begun with the new ones
                    await back.put(declared)
                    with suppress(WireError):  # the weights are back, whatever the adapters do
                        await self._adapters_proven()
                elif step.held:
                    await back.release()
        except (WireError, WeightsError, ModelError, TimeoutError) as error:
            why = _said(error, back, deadline)
            which = f"those in {declared.path}" if old.path is None else "the old ones"
            if self._condemn is not None:
                self._condemn(f"its weights could not be swapped, nor taken back: {why}")
                return f"the server is started again with {which}"
            return (
                f"the old ones are NOT back: {why}; end its process: where `enginehouse serve` "
                f"keeps it, it comes back with those in {declared.path}"
            )
        return None

    async def _demand_unchanged(self, weights: Weights) -> None:
        """Raise WeightsError unless the folder still holds them; hashes only what was touched."""
        if weights.path is None:  # there is nothing that could have changed
            return
        digest = await asyncio.to_thread(digest_of, weights.path, layout=self._layout)
        if digest != weights.digest:
            raise WeightsError(
                f"{weights.path} no longer holds the weights that were loaded from it",
                why=f"its digest was {weights.digest[:12]}, and is {digest[:12]}",
                fix="write each checkpoint into a folder of its own",
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
            check=self._demand_unchanged,
            load=load,
        )

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        if self._busy:
            raise self._taken()
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
            raise self._taken() from None

    def _taken(self) -> WeightsError:
        return WeightsError(
            f"somebody else swaps the weights of {self._server.name or self._server.base_url}",
            why="another swap is under way, or the process that serves it keeps that to itself",
            fix="wait for the other swap; swap from the process that serves it",
            kind="taken",
        )


async def _to_its_end(work: Coroutine[Any, Any, Result]) -> Result:
    """What it comes to; a cancellation takes effect after that. It must end by itself."""
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


def _said(error: BaseException, step: Replacement, deadline: float) -> str:
    """The error in a line."""
    if isinstance(error, TimeoutError):
        return f"{step.stage} did not come within {deadline:g} s"
    if isinstance(error, WireError | WeightsError | ModelError):
        return f"{step.stage}: {error.message}" + (f" ({error.why})" if error.why else "")
    return f"{step.stage} was broken off ({type(error).__name__})"


def _kind(error: BaseException) -> str:
    return "deadline" if isinstance(error, TimeoutError) else "wire"
