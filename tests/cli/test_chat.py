"""`enginehouse chat`: in a terminal, and line by line."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from tests.support.command_line import DEADLINE, Finished, House
from tests.support.foreign_server import fake_engine

Pipe = Callable[..., Finished]


@pytest.fixture
def pipe(call: Pipe) -> Pipe:
    """`enginehouse chat`, with messages on standard input."""
    return lambda said, *words: call("chat", *words, stdin=said)


class Terminal:
    """A terminal with `enginehouse chat` in it."""

    def __init__(self, house: House, *words: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "enginehouse", "chat", *words],
            **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
            env=house.env | {"TERM": "dumb"},
            cwd=house.work,
            start_new_session=True,
        )
        os.close(slave)
        self._said = ""

    def type(self, text: str) -> None:
        """Keys, with Enter."""
        os.write(self._master, text.encode() + b"\n")

    def until(self, text: str) -> str:
        """Read until that is on the screen; gives everything since the last time."""
        deadline = time.monotonic() + DEADLINE
        while text not in self._said:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._master], [], [], max(0.0, left))
            assert ready, f"{text!r} is not on the screen: {self._said!r}"
            try:
                self._said += os.read(self._master, 1 << 16).decode()
            except OSError:  # it ended
                raise AssertionError(f"{text!r} was not said: {self._said!r}") from None
        before, found, self._said = self._said.partition(text)
        return before + found

    def interrupt(self, text: str, number: int = signal.SIGINT) -> None:
        """Send a signal at the prompt until that is on the screen.

        One that comes between GNU readline's prompt and its select() waits for the next.
        """
        os.set_blocking(self._master, False)
        deadline = time.monotonic() + DEADLINE
        while text not in self._said:
            assert time.monotonic() < deadline, f"{text!r} was not said: {self._said!r}"
            if self.process.poll() is None:
                self.process.send_signal(number)
            if select.select([self._master], [], [], 0.5)[0]:
                with contextlib.suppress(OSError):
                    self._said += os.read(self._master, 1 << 16).decode()

    def end(self) -> int:
        """Its exit code."""
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        """End it however it is."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(house: House) -> Iterator[Callable[..., Terminal]]:
    """Terminals that are closed at the end."""
    opened: list[Terminal] = []

    def begin(*words: str) -> Terminal:
        opened.append(Terminal(house, *words))
        return opened[-1]

    yield begin
    for terminal in opened:
        terminal.close()


def test_line_by_line(house: House, pipe: Pipe):
    """Answers only, one after another; the conversation is remembered until /reset."""
    with fake_engine() as url:
        said = "Hello\n\nHello\n/reset\nHello\n/exit\nunasked\n"
        done = pipe(said, url, "-q", "--temperature", "0")
    assert (done.code, done.err) == (0, "")
    first, second, third = done.out.splitlines()
    assert first == third
    assert first != second


def test_a_system_message(house: House, pipe: Pipe):
    """Comes first, and stays after /reset."""
    with fake_engine() as url:
        words = (url, "-q", "--temperature", "0")
        without = pipe("Hi\n", *words).out.splitlines()
        told = pipe("Hi\n/reset\nHi", *words, "--system", "Be brief").out.splitlines()
    assert told == [told[0]] * 2
    assert without != told[:1]


def test_what_no_longer_fits_is_left_out(house: House, pipe: Pipe):
    """The context's end is explained, the history stays, and the exit code is 6 at the end."""
    words = ("--max-tokens", "16", "--temperature", "0")
    with fake_engine("--max-model-len", "128") as url:
        done = pipe(f"Hello\n{'again ' * 200}\nHello\n", url, *words)
        usual = pipe("Hello\nHello\n", url, *words)
    assert (done.code, usual.code) == (6, 0)
    assert done.out == usual.out
    assert "/reset" in done.err


def test_an_answer_that_is_cut_off_says_so(house: House, pipe: Pipe):
    """On standard error."""
    with fake_engine() as url:
        done = pipe("Hi\n", url, "--max-tokens", "2")
    assert done.code == 0
    assert "--max-tokens" in done.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("http://127.0.0.1:1",), 6),
        (("m", "--engine", "vlm"), 2),
        (("m", "--engine", "openai"), 2),
        (("m", "--engine", "megatron", "--url", "http://127.0.0.1:1"), 6),
    ],
)
def test_wrong_usage(pipe: Pipe, words: tuple[str, ...], code: int):
    """Before a message is read."""
    done = pipe("Hi\n", *words)
    assert done.code == code, done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_then_ends(house: House, terminal):
    """Streamed as it comes; what was answered stays, and at the prompt Ctrl-C is the end."""
    canned = house.answers({"everything": "Well then: " + "word " * 5000}).partition("=")[2]
    env = {"VLLM_FAKE_ANSWERS": canned, "VLLM_FAKE_TOKEN_LATENCY": "0.05"}
    with fake_engine(**env) as url:
        chat = terminal(url, "--max-tokens", "5000", "--temperature", "0")
        chat.until("> ")
        chat.type("Tell me everything")
        chat.until("Well then: ")
        chat.process.send_signal(signal.SIGINT)
        chat.until("stopped")
        chat.until("> ")
        chat.interrupt("interrupted")
        assert chat.end() == 130


@pytest.mark.slow
def test_the_end_of_the_input_ends(house: House, terminal):
    """Ctrl-D at the prompt is status 0; so is /exit."""
    with fake_engine() as url:
        chat = terminal(url)
        chat.until("> ")
        chat.type("/exit")
        assert chat.end() == 0
        chat = terminal(url)
        chat.until("> ")
        chat.type("\x04")
        assert chat.end() == 0


@pytest.mark.slow
def test_a_model_is_served_and_stopped(house: House, terminal):
    """However it ends: /exit, Ctrl-C at the prompt or while it starts, SIGTERM."""
    house.model()
    chat = terminal("tiny")
    chat.until("> ")
    chat.type("/exit")
    chat.until("stopping the server")
    assert chat.end() == 0
    house.nothing_left()
    for number in (signal.SIGINT, signal.SIGTERM):
        chat = terminal("tiny")
        chat.until("> ")
        chat.interrupt("interrupted", number)
        assert chat.end() == 128 + number
        house.nothing_left()
    chat = terminal("tiny", "--env", "VLLM_FAKE_START_DELAY=60")
    chat.until("starting vllm")
    chat.process.send_signal(signal.SIGINT)
    assert chat.end() == 130
    house.nothing_left()
