"""What a command says: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

Result = TypeVar("Result")


class Console:
    """Quiet says results and errors only, verbose adds tracebacks, json is for programs."""

    def __init__(self, *, json: bool = False, verbose: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.verbose = verbose
        self.quiet = quiet

    def note(self, message: str) -> None:
        """One line about what is going on."""
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)  # noqa: T201

    def result(self, value: Any, *, text: Callable[[], None]) -> None:
        """Print `value` as JSON with --json, else call `text`."""
        if self.json:
            self.data(value)
        else:
            text()

    def data(self, value: Any) -> None:
        """Print `value` as one JSON document."""
        encoded = msgspec.json.format(msgspec.json.encode(value, enc_hook=str))
        sys.stdout.write(encoded.decode() + "\n")
        sys.stdout.flush()

    def say(self, message: str) -> None:
        """Print a line of the result."""
        sys.stdout.write(message + "\n")
        sys.stdout.flush()


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end on uvloop where there is one; Ctrl-C and SIGTERM cancel it in order."""
    import asyncio
    import signal

    async def supervised() -> Result:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        received: list[int] = []

        def interrupt(number: int) -> None:
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
    """A signal ended the command; everything that it had started has been stopped."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
