"""What a command prints: results on standard output, everything else on standard error.

Control characters are escaped, whatever the text's origin and destination: see `visible`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from enginehouse.core.errors import EnginehouseError
from enginehouse.report.visible_text import visible_json, write_plain, write_text

if TYPE_CHECKING:
    from enginehouse.results.experiment_progress import ExperimentProgress
    from enginehouse.results.summary import Progress
    from enginehouse.runtime.interrupts import SignalRoute

Result = TypeVar("Result")


class Console:
    """`quiet` leaves results and errors only, `verbose` adds tracebacks, `json` is for programs."""

    def __init__(self, *, json: bool = False, verbose: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.verbose = verbose
        self.quiet = quiet

    def note(self, message: str) -> None:
        """Print a line about what is going on."""
        if not self.quiet:
            write_text(sys.stderr, message + "\n")

    def say(self, message: str) -> None:
        """Print a line of the result."""
        write_text(sys.stdout, message + "\n")

    def result(self, value: Any, *, text: Callable[[], None]) -> None:
        """Print `value` as one JSON document with --json; otherwise call `text`."""
        if not self.json:
            text()
            return
        import msgspec

        encoded = msgspec.json.format(msgspec.json.encode(value, enc_hook=str))
        write_plain(sys.stdout, visible_json(encoded.decode()) + "\n")

    @contextmanager
    def progress(self) -> Iterator[Callable[[Progress], None]]:
        """What shows the progress of a run on standard error inside the block."""
        if self.quiet:
            yield lambda _: None
            return
        from enginehouse.report.live import progress_display

        with progress_display(sys.stderr) as show:
            yield show

    @contextmanager
    def match_progress(self) -> Iterator[Callable[[ExperimentProgress], None]]:
        """What shows the progress of an experiment on standard error inside the block."""
        if self.quiet:
            yield lambda _: None
            return
        from enginehouse.report.live import match_display

        with match_display(sys.stderr) as show:
            yield show


def show_error(error: EnginehouseError, *, verbose: bool) -> int:
    """Print what happened on standard error; returns the exit code."""
    if verbose:
        show_traceback()
    write_text(sys.stderr, f"error: {error}\n")
    return error.exit_code


def show_traceback() -> None:
    """Print the traceback of the exception that is being handled on standard error."""
    import traceback

    write_text(sys.stderr, traceback.format_exc())


def run_async(work: Coroutine[Any, Any, Result], *, signals: SignalRoute | None = None) -> Result:
    """Run `work`, on uvloop if it is installed. Ctrl-C and SIGTERM cancel it, which may clean up.

    `signals` may pass them on instead. Raises Interrupted after a signal that has cancelled it.
    """
    import asyncio
    import signal

    async def supervised() -> Result:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        received: list[int] = []

        def interrupt(number: int) -> None:
            if signals is not None and signals.take(number):
                return
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt, number)
        try:
            return await task
        except asyncio.CancelledError:
            if received:
                raise Interrupted(received[0]) from None
            raise

    try:
        import uvloop
    except ImportError:
        return asyncio.run(supervised())
    return uvloop.run(supervised())


class Interrupted(BaseException):
    """A signal ended the command; everything it had started has been stopped."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
