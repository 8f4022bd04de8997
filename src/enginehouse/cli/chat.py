"""enginehouse chat."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from enginehouse.cli.console import Console, Interrupted
from enginehouse.cli.options import Given, with_config_options
from enginehouse.commands.configuration import ChatConfig, ChatSettings
from enginehouse.core.errors import UnauthorizedError, WireError
from enginehouse.report.visible_text import write_plain, write_text
from enginehouse.runtime.context import Context

if TYPE_CHECKING:
    from enginehouse.commands.chat import Conversation
    from enginehouse.deployment.base import Deployment
    from enginehouse.runtime.blocking import Portal


@with_config_options(ChatConfig, json=False)
def chat(*, given: Given[ChatConfig], console: Console) -> None:
    """Talk to a model in the terminal, or line by line with messages on standard input.

    /reset starts a new conversation, /exit quits. Ctrl-C stops an answer, or quits at the prompt.
    """
    config = given.settings()
    context = Context(notify=console.note)
    from enginehouse.deployment.opening import open_deployment
    from enginehouse.runtime.blocking import Portal

    with _interruptible():
        held = Portal(lambda: open_deployment(config.plan, context, concurrency=1), name="chat")
        try:
            failure = _Talk(held, config.settings, console).run()
        finally:
            # From here on the server is being stopped, which a second signal must not cut short.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            held.close()
    if failure is not None:
        raise typer.Exit(failure.exit_code)


class _Talk:
    """The terminal's side of a conversation."""

    def __init__(self, held: Portal[Deployment], settings: ChatSettings, console: Console) -> None:
        self._held = held
        self._console = console
        self._conversation = held.call(lambda ready: _begin(ready, settings))
        self._max_tokens = settings.max_tokens
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._failure: WireError | None = None

    def run(self) -> WireError | None:
        """Answer every message. Without a terminal, returns the last failure."""
        if self._terminal:
            import readline  # noqa: F401 - gives input() its editing

            self._console.note(
                "/reset starts a new conversation, /exit or Ctrl-D quits; "
                "Ctrl-C stops an answer, or quits at the prompt"
            )
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
                write_plain(sys.stdout, "\n")  # the shell's prompt starts on a new line
                return
            yield line

    def _answer(self, text: str) -> None:
        screen = _AnswerOnScreen()
        try:
            answer = self._held.call(lambda _: self._conversation.answer(text, show=screen.show))
        except KeyboardInterrupt:
            screen.end()
            if not self._terminal:
                raise
            self._console.note("stopped; the answer so far is part of the conversation")
        except UnauthorizedError:
            raise
        except WireError as error:
            screen.end()
            self._failure = error
            self._console.note(f"error: {error}")
        else:
            screen.end(always=True)
            if answer.cut_off:
                self._console.note(
                    f"cut off after {self._max_tokens} tokens; --max-tokens allows more"
                )


class _AnswerOnScreen:
    """Prints an answer as it arrives. Pieces that arrive after `end` are dropped."""

    def __init__(self) -> None:
        self._began = self._ended = False
        # A program that reads the answers gets them unchanged.
        self._write = write_text if sys.stdout.isatty() else write_plain

    def show(self, piece: str) -> None:
        if not self._ended:
            self._began = True
            self._write(sys.stdout, piece)

    def end(self, *, always: bool = False) -> None:
        """End the line; with `always` even that of an empty answer."""
        self._ended = True
        if self._began or always:
            self._write(sys.stdout, "\n")


async def _begin(ready: Deployment, settings: ChatSettings) -> Conversation:
    from enginehouse.commands.chat import Conversation

    return Conversation(ready.sampler, settings)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt inside the block; both signals raise Interrupted outside."""

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
