"""The processes in which other people's code scores answers.

A process loads one program and scores many answers at once (see `payloads/score_answers.py`, which
enforces the time limit of each). It is started for the first answer and watched; if it hangs or
breaks, it is killed together with everything it started, and replaced. It ends when its standard
input closes, so it never outlives this process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from enginehouse.core.errors import ScoringError
from enginehouse.tasks.base import Score, ScoringCall, ScoringProgram
from enginehouse.tasks.scoring_programs import (
    BATCH,
    LANES,
    START_TIMEOUT,
    Verdict,
    read_facts,
    score_of,
    start_of,
)

IN_FLIGHT: Final = 2 * LANES * BATCH  # answers handed to one process at once
_END_WAIT: Final = 1.0  # seconds for a process to end by itself
_POLL: Final = 0.005
_LONGEST_LINE: Final = 1 << 22  # bytes


class ScoringProcesses:
    """One process for each scoring program; closing ends them all.

    A process counts as hung if it is silent for `grace` seconds beyond an answer's limit.
    """

    def __init__(self, *, grace: float = 15.0) -> None:
        self._grace = grace
        self._lines: dict[ScoringProgram, _Line] = {}

    async def score(self, call: ScoringCall) -> Score:
        """Score one answer. Raises ScoringError, and ScoringTimeoutError after the program's limit.

        Cancellable. Waits while many answers are being scored.
        """
        if (line := self._lines.get(call.program)) is None:
            line = self._lines[call.program] = _Line(call.program, grace=self._grace)
        verdict = await line.ask(call.arguments)
        return score_of(verdict, program=call.program, answer=call.answer)

    async def close(self) -> None:
        """End every process. Idempotent."""
        await asyncio.gather(*(line.close() for line in self._lines.values()))


class _EndedError(Exception):
    """The process ended, or was ended, with this answer unscored."""


class _Line:
    """The answers for one program, scored by a process that is replaced when it breaks."""

    def __init__(self, program: ScoringProgram, *, grace: float) -> None:
        self._program = program
        self._grace = grace
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._starting = asyncio.Lock()
        self._alone = asyncio.Lock()
        self._process: _Process | None = None
        self._refusal: ScoringError | None = None

    async def ask(self, arguments: Mapping[str, Any]) -> Verdict:
        """Score one answer; if the process ends meanwhile, once more in one of its own."""
        async with self._slots:
            process = await self._running()
            try:
                return await process.ask(arguments)
            except _EndedError:
                async with self._alone:
                    process = await _Process.start(self._program, grace=self._grace)
                    try:
                        return await process.ask(arguments)
                    except _EndedError as error:
                        raise ScoringError(f"{self._program.name} {error}") from error
                    finally:
                        await process.close()

    async def _running(self) -> _Process:
        async with self._starting:
            if self._refusal is not None:
                raise self._refusal
            if self._process is None or self._process.ended:
                try:
                    self._process = await _Process.start(self._program, grace=self._grace)
                except ScoringError as error:
                    self._refusal = error
                    raise
            return self._process

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            await self._process.close()


class _Process:
    """One process, created by `start`."""

    def __init__(
        self, program: ScoringProgram, child: subprocess.Popen[bytes], *, grace: float
    ) -> None:
        self._program = program
        self._patience = program.seconds + grace
        self._child = child
        self._waiting: dict[int, asyncio.Future[Verdict]] = {}
        self._number = 0
        self._heard = 0.0
        self._decoder = msgspec.json.Decoder(Verdict)
        self._reading: asyncio.Task[None] | None = None
        self._pipes = [child.stdin, child.stdout]  # those without a transport yet
        self._transports: list[asyncio.BaseTransport] = []
        self.ended = False

    @classmethod
    async def start(cls, program: ScoringProgram, *, grace: float) -> _Process:
        """Start a process and wait until it has loaded the program. Raises ScoringError."""
        start = await asyncio.to_thread(start_of, program)
        # Started in this thread: a confined process is killed when the thread that started it ends.
        child = subprocess.Popen(  # noqa: ASYNC220
            start.argv,
            env=start.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        process = cls(program, child, grace=grace)
        try:
            await process._open(start.setup)
        except BaseException:
            await process.close()
            raise
        return process

    async def _open(self, setup: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._replies = asyncio.StreamReader(limit=_LONGEST_LINE)
        output, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._replies), self._child.stdout
        )
        self._transports.append(output)
        self._pipes.remove(self._child.stdout)
        self._input, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self._child.stdin)
        self._transports.append(self._input)
        self._pipes.clear()
        self._input.write(setup)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                line = await self._replies.readline()
        except (TimeoutError, ValueError) as error:
            why = f"it took more than {START_TIMEOUT:g} s"
            raise ScoringError(f"{self._program.name} cannot be loaded", why=why) from error
        read_facts(self._program, line, status=self._child.poll())
        self._reading = asyncio.create_task(self._read())

    async def ask(self, arguments: Mapping[str, Any]) -> Verdict:
        """The verdict on one answer. Raises _EndedError if the process ends before it."""
        if self.ended:
            raise _EndedError("ended its process")
        self._number += 1
        number = self._number
        if not self._waiting:
            self._heard = time.monotonic()
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._input.write(msgspec.json.encode({**arguments, "id": number}) + b"\n")
        try:
            verdict: Verdict = await future
            return verdict
        finally:
            self._waiting.pop(number, None)

    async def _read(self) -> None:
        """Pass verdicts to their callers until the process ends or falls silent."""
        patience = self._patience
        why = "ended its process"
        while True:
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation when a line comes.
                async with asyncio.timeout(patience):
                    line = await self._replies.readline()
                if not line:
                    break
                verdict = self._decoder.decode(line)
            except TimeoutError:
                if self._waiting and time.monotonic() - self._heard > patience:
                    why = f"was silent for {patience:g} s"
                    break
                continue
            except (ValueError, msgspec.DecodeError):  # a line too long, or not a verdict
                why = "returned unreadable results"
                break
            self._heard = time.monotonic()
            future = self._waiting.get(verdict.id)
            if future is not None and not future.done():
                future.set_result(verdict)
        self._give_up(why)
        await self._see_gone()

    async def close(self) -> None:
        """End it with everything in its session. Idempotent; cancelled, it kills at once."""
        self._give_up("was closed")
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._see_gone()

    def _give_up(self, why: str) -> None:
        self.ended = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_EndedError(why))

    async def _see_gone(self) -> None:
        """Close its standard input, which ends it, and kill it if it does not end soon."""
        try:
            for open_end in (*self._transports, *self._pipes):
                if open_end is not None:
                    open_end.close()
            deadline = time.monotonic() + _END_WAIT
            while self._child.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(_POLL)
        finally:
            if self._child.poll() is None:
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
