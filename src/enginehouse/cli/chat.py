"""enginehouse chat."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from enginehouse.cli.console import Console, Interrupted
from enginehouse.cli.options import (
    ConfigOption,
    QuietOption,
    VerboseOption,
    with_config_options,
)
from enginehouse.commands.configuration import ChatConfig
from enginehouse.core.errors import UnauthorizedError, WireError
from enginehouse.deployment.configuration import merged, parse, read_yaml
from enginehouse.report.visible_text import write_plain, write_text
from enginehouse.runtime.context import Context

if TYPE_CHECKING:
    from enginehouse.commands.chat import Conversation
    from enginehouse.deployment.base import Deployment
    from enginehouse.facades.blocking import Held

_HINT = "/reset begins anew, /exit or Ctrl-D ends; Ctrl-C stops an answer, or ends at the prompt"


@with_config_options(ChatConfig)
def chat(
    *,
    config: ConfigOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any],
) -> None:
    """Talk to a model in the terminal; or line by line, with messages on standard input.

    /reset begins anew, /exit ends. Ctrl-C stops an answer, or ends at the prompt.
    """
    console = Console(verbose=verbose, quiet=quiet)
    values = merged(read_yaml(config) if config else {}, given)
    settings = parse(ChatConfig, values, origin=str(config or "the command line"))
    context = Context(notify=console.note)
    from enginehouse.deployment.opening import open_deployment
    from enginehouse.facades.blocking import Held

    with _interruptible():
        held = Held(lambda: open_deployment(settings, context, concurrency=1), name="chat")
        try:
            failure = _Talk(held, settings, console).run()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):  # the server is stopped in order
                signal.signal(number, signal.SIG_IGN)
            held.close()
    if failure is not None:
        raise typer.Exit(failure.exit_code)


class _Talk:
    """The terminal's side of a conversation."""

    def __init__(self, held: Held[Deployment], settings: ChatConfig, console: Console) -> None:
        self._held = held
        self._console = console
        self._conversation = held.call(lambda ready: _begun(ready, settings))
        self._max_tokens = settings.max_tokens
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._failure: WireError | None = None

    def run(self) -> WireError | None:
        """Answer every message; the last failure where nobody sat there to see it."""
        if self._terminal:
            import readline  # noqa: F401 - gives input() its editing

            self._console.note(_HINT)
        for line in self._lines():
            text = line.strip()
            if text == "/exit":
                break
            if text == "/reset":
                self._conversation.reset()
            elif text:
                self._answer(text)
        return None if self._terminal else self._failure

    def _lines(self) -> Iterator[str]:
        if not self._terminal:
            for line in sys.stdin.buffer:
                yield line.decode(errors="replace")
            return
        while True:
            try:
                line = input("> ")
            except EOFError:
                write_plain(sys.stdout, "\n")  # the shell's prompt begins on a line of its own
                return
            yield line

    def _answer(self, text: str) -> None:
        shown = _Shown()
        try:
            answer = self._held.call(lambda _: self._conversation.answer(text, show=shown.show))
        except KeyboardInterrupt:
            shown.end()
            if not self._terminal:
                raise
            self._console.note("stopped; the answer so far is part of the conversation")
        except UnauthorizedError:
            raise
        except WireError as error:
            shown.end()
            self._failure = error
            self._console.note(f"error: {error}")
        else:
            shown.end(always=True)
            if answer.cut_off:
                self._console.note(
                    f"cut off after {self._max_tokens} tokens; --max-tokens allows more"
                )


class _Shown:
    """An answer on the screen; once it is ended, pieces that are still under way are not shown."""

    def __init__(self) -> None:
        self._begun = self._ended = False
        # A program that reads the answers gets them as they are.
        self._write = write_text if sys.stdout.isatty() else write_plain

    def show(self, piece: str) -> None:
        if not self._ended:
            self._begun = True
            self._write(sys.stdout, piece)

    def end(self, *, always: bool = False) -> None:
        """End the line; `always` also that of an empty answer."""
        self._ended = True
        if self._begun or always:
            self._write(sys.stdout, "\n")


async def _begun(ready: Deployment, settings: ChatConfig) -> Conversation:
    from enginehouse.commands.chat import Conversation

    return Conversation(ready.sampler, settings)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, SIGTERM ends; either way as other commands end."""

    def terminate(number: int, _: object) -> NoReturn:
        raise Interrupted(number)

    before = (
        (signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)),
        (signal.SIGTERM, signal.signal(signal.SIGTERM, terminate)),
    )
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT) from None
    finally:
        for number, handler in before:
            signal.signal(number, handler)
